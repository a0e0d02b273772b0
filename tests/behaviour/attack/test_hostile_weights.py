"""Weights with something to run in them, or not what they seem: refused, nothing is run."""

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .memory import held
from .starting import Starter
from .world import draw

CANARY = "canary"
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
NETWORK = "squeezenet1_1"


class Reduced:
    """Unpickled, it runs a command."""

    def __reduce__(self):
        import os

        return os.system, (f"touch {CANARY}",)


class Evaluated:
    """Unpickled, it evaluates Python."""

    def __reduce__(self):
        return eval, (f"open({CANARY!r}, 'w')",)


class Module(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def state() -> dict[str, torch.Tensor]:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    return squeezenet1_1().state_dict()


def by_torch(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against it; the files are about
        torch.jit.save(torch.jit.script(Module()), file)
    return file.getvalue()


def tar(**members: bytes) -> bytes:
    """The format of torch before 0.1.10: a tar of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return file.getvalue()


def safetensors(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def numpy_object() -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array([Reduced()], object), allow_pickle=True)
    return file.getvalue()


# Each makes the bytes of a file.
PAYLOADS: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: pickle.dumps(Reduced()),
    "pickle, protocol 0": lambda: pickle.dumps(Evaluated(), 0),
    "saved": lambda: by_torch(Reduced()),
    "saved, legacy": lambda: by_torch(Reduced(), _use_new_zipfile_serialization=False),
    "beside the weights": lambda: by_torch(state() | {"x": Reduced()}),
    "in a list": lambda: by_torch([state(), Evaluated()]),
    "a module": lambda: by_torch(Module()),
    "TorchScript": script,
    "tar": lambda: tar(sys_info=pickle.dumps(Reduced()), pickle=pickle.dumps(Reduced())),
    "zip": lambda: zipped(archive__data_pkl=pickle.dumps(Reduced()), archive__version=b"3"),
    "numpy": numpy_object,
    "text": lambda: b"import os; os.system('touch canary')",
    "nothing": lambda: b"",
    "safetensors without end": lambda: struct.pack("<Q", 1 << 62) + b"{}",
}


QUICK = ("pickle", "saved, legacy", "beside the weights", "TorchScript", "tar")


def run(start: Starter, path: Path, home: Path, **options: object):
    if not (home / "images").exists():
        for k in range(2):
            draw(home / "images" / f"{k}.png", k)
    words = ("run", home / "images", "-o", home / "c.h5", "--backbone", NETWORK)
    given = ("--weights", path, "--device", "cpu")
    return start.start("featurize", *words, *given, folder=home, **options)


def check(start: Starter, path: Path, home: Path) -> str:
    done = run(start, path, home).wait(60)
    assert done.code == 2, done.said
    assert "Traceback" not in done.err, done.said
    assert "unexpected" not in done.err, done.said
    assert path.name in done.err, done.said
    assert not list(home.rglob(CANARY)), "something was run"
    assert not (home / "c.h5").exists()
    return done.err


@pytest.mark.parametrize("name", QUICK)
def test_nothing_in_weights_is_run(start: Starter, name, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(PAYLOADS[name]())
    check(start, path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_is_run_whatever_the_file_is_called(start: Starter, name, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(PAYLOADS[name]())
    check(start, path, tmp_path)
    # As a backbone of its own, as a head, and as the start of a training.
    for words in (
        ("featurize", "run", tmp_path / "images", "-o", tmp_path / "d.h5", "--backbone", path),
        ("classify", "predict", path, tmp_path / "images", "-o", tmp_path / "p.csv"),
    ):
        done = start(*words, folder=tmp_path, hang=60)
        assert done.code == 2, done.said
        assert not list(tmp_path.rglob(CANARY)), "something was run"


def odd(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[], bytes]:
    def make() -> bytes:
        tensors = state()
        change(tensors)
        return by_torch(tensors)

    return make


def strided() -> torch.Tensor:
    """64 GB that take four bytes."""
    return torch.zeros(1).expand(16_000_000_000)


FIRST = "features.0.weight"
ODD: dict[str, Callable[[], bytes]] = {
    "64 GB beside the weights": odd(lambda t: t.update(x=strided())),
    "64 GB in their place": odd(lambda t: t.update({FIRST: strided()})),
    "sparse": odd(lambda t: t.update(x=torch.eye(3).to_sparse())),
    "sparse in their place": odd(lambda t: t.update({FIRST: torch.eye(3).to_sparse()})),
    "quantised": odd(
        lambda t: t.update(x=torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    ),
    "meta": odd(lambda t: t.update({FIRST: t[FIRST].to("meta")})),
    "complex": odd(lambda t: t.update({FIRST: t[FIRST].to(torch.complex64)})),
    "another shape": odd(lambda t: t.update({FIRST: t[FIRST][:3]})),
    "missing": odd(lambda t: t.pop(FIRST)),
    "names of escapes": lambda: by_torch({"\x1b[31m\n": torch.zeros(3)}),
    "a number": lambda: by_torch(3),
    "keys of numbers": lambda: by_torch({1: torch.zeros(3)}),
}


THRIFTY = {"64 GB in their place", "sparse", "meta"}


@pytest.mark.filterwarnings("ignore")  # of torch, about some of these kinds of tensors
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in THRIFTY else pytest.mark.slow, id=n) for n in ODD],
)
def test_odd_tensors_are_refused(start: Starter, name, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(ODD[name]())
    at_work, peak = run(start, path, tmp_path), 0
    while at_work.poll(0.01) is None and peak < 6 << 30:
        peak = max(peak, sum(held(at_work.pid).values()))
    if peak >= 6 << 30:
        at_work.send(9)
    done = at_work.wait(60)
    assert peak < 6 << 30, "it takes the machine's memory"
    beside = name in ("64 GB beside the weights", "sparse", "quantised")
    assert done.code in ((0, 2) if beside else (2,)), done.said
    assert "Traceback" not in done.err, done.said
    assert "\x1b" not in done.err, done.said
    if done.code:
        assert path.name in done.err, done.said
