"""What tests of both stages share: the installed commands, and real weights and photographs."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .behaviour.attack.starting import Starter

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of their own would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def asks_for_gpus(expression: str) -> bool:
    """Tell whether the expression of ``-m`` asks for tests that need a GPU."""
    return "gpu" in expression.replace("not gpu", "")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that do not ask for one, and from what they start.

    With ``--device auto`` they would all run on one, several at a time.
    """
    if not asks_for_gpus(config.getoption("markexpr")):
        os.environ.update(dict.fromkeys(GPU_VARIABLES, ""))


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device of tests that only a GPU can pass judgement on; they are skipped without one.

    ``HEADGRAFT_GPU_TESTS_ON=cpu`` rehearses them on the processor, as far as it goes.
    """
    import torch

    if (rehearsed := os.environ.get("HEADGRAFT_GPU_TESTS_ON")) is not None:
        return rehearsed
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device, or hidden: ask for it by -m gpu")
    return "cuda"


CURRENT_TEST = "PYTEST_CURRENT_TEST"
LONGEST = ("test_crash.py", "test_docs.py", "test_auto.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, or one core would wait for the last of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def command() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs a command as it is installed: ``command("featurize", "run", ...)``.

    It is forked from a process that has imported everything already, which saves seconds a call.
    With `fresh`, or an environment of its own or anything else that only a new process can have, it
    is started by its installed launcher.
    """
    start = Starter()
    at_first = {name: value for name, value in os.environ.items() if name != CURRENT_TEST}

    def call(
        name: str, *arguments: object, timeout: float = 180, fresh: bool = False, **options
    ) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
        now = {name: value for name, value in os.environ.items() if name != CURRENT_TEST}
        if fresh or set(options) - {"cwd"} or now != at_first:
            return subprocess.run(line, capture_output=True, text=True, timeout=timeout, **options)
        ended = start(name, *arguments, hang=timeout, folder=options.get("cwd") or Path.cwd())
        return subprocess.CompletedProcess(line, ended.code, ended.out, ended.err)

    yield call
    start.end()


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real weights and images; tests that need it are skipped without it."""
    folder = os.environ.get("HEADGRAFT_REAL")
    if not folder:
        pytest.skip("HEADGRAFT_REAL is not set: the folder with real weights and images")
    if not (Path(folder) / "squeezenet1_1-imagenet.safetensors").is_file():
        pytest.skip(f"HEADGRAFT_REAL={folder} holds no squeezenet1_1-imagenet.safetensors")
    return Path(folder)


@pytest.fixture(scope="session")
def squeezenet_weights(real: Path) -> Path:
    """SqueezeNet 1.1's published ImageNet weights, in float16."""
    return real / "squeezenet1_1-imagenet.safetensors"


@pytest.fixture(scope="session")
def photos(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve of CIFAR-10's JPEGs, six airplanes and six automobiles."""
    folder = tmp_path_factory.mktemp("photos")
    wanted = [f"train/{label}/{k:04}.jpg" for label in ("airplane", "automobile") for k in range(6)]
    extract(real / "cifar10.tar.gz", folder, set(wanted))
    return folder


@pytest.fixture(scope="session")
def cifar10(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,000 training and 300 test images of each class of CIFAR-10, by name."""
    folder = tmp_path_factory.mktemp("cifar10")
    first = {"train": 2000, "test": 300}
    names: dict[str, list[str]] = {}
    with tarfile.open(real / "cifar10.tar.gz") as archive:
        for name in archive.getnames():
            if name.endswith(".jpg"):
                names.setdefault(name.rpartition("/")[0], []).append(name)
    wanted = {
        name
        for group, members in names.items()
        for name in sorted(members)[: first[group.split("/")[0]]]
    }
    extract(real / "cifar10.tar.gz", folder, wanted)
    return folder


def extract(archive: Path, folder: Path, wanted: set[str]) -> None:
    """Take some members out of a tar file, reading it no further than the last of them."""
    missing = set(wanted)
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            if member.name in missing:
                members.extract(member, folder, filter="data")
                missing.discard(member.name)
                if not missing:
                    return
    pytest.fail(f"{archive} lacks {sorted(missing)[:3]}")
