"""Heads that lie, and heads with something to run in them: refused or harmless, nothing is run."""

import json
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skops.io
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from .starting import Starter

Arrays = dict[str, np.ndarray]
Metadata = dict[str, str]
Change = Callable[[Arrays, Metadata], object]
CANARY = "canary"


def parts(path: Path) -> tuple[Arrays, Metadata]:
    with safe_open(path, "np") as file:
        return load_file(path), dict(file.metadata())


def entry(name: str, text: str) -> Change:
    return lambda arrays, metadata: metadata.__setitem__(name, text)


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda arrays, metadata: arrays.__setitem__(name, change(arrays[name]))


def layers(**changes: object) -> Change:
    def change(arrays: Arrays, metadata: Metadata) -> None:
        found = json.loads(metadata["layers"])
        found[0] |= changes
        metadata["layers"] = json.dumps(found)

    return change


def recipe(**changes: object) -> Change:
    def change(arrays: Arrays, metadata: Metadata) -> None:
        found = json.loads(metadata["preprocess"])
        metadata["preprocess"] = json.dumps(found | changes)

    return change


def wide(count: int) -> Change:
    return array("coef", lambda x: np.zeros((len(x), count), x.dtype))


REFUSED: dict[str, Change] = {
    "another format": entry("format", "x"),
    "version 2": entry("version", "2.0"),
    "no version": lambda a, m: m.pop("version"),
    "one class": entry("classes", '["a"]'),
    "other classes": entry("classes", '["a", "b"]'),
    "the same class twice": entry("classes", '["a", "a", "b"]'),
    "classes of numbers": entry("classes", "[1, 2, 3]"),
    "classes of lists": entry("classes", '[["a"], "b", "c"]'),
    "classes without end": entry("classes", "[" * 200_000),
    "no classes": lambda a, m: m.pop("classes"),
    "temperature 0": entry("temperature", "0"),
    "temperature NaN": entry("temperature", "NaN"),
    "temperature infinite": entry("temperature", "1e999"),
    "temperature of digits": entry("temperature", "9" * 5000),
    "settings of text": entry("settings", '{"C": "1"}'),
    "settings NaN": entry("settings", '{"C": NaN}'),
    "record of text": entry("record", '"x"'),
    "no record": lambda a, m: m.pop("record"),
    "probabilistic 1": entry("probabilistic", "1"),
    "head of 3": entry("head", "3"),
    "layers none": entry("layers", "[]"),
    "layers more": layers(more="x"),
    "dim -1": layers(dim=-1),
    "dim 2^62": layers(dim=2**62),
    "dim of text": layers(dim="16"),
    "dim true": layers(dim=True),
    "coef of integers": array("coef", lambda x: x.astype(np.int64)),
    "coef of halves": array("coef", lambda x: x.astype(np.float16)),
    "coef of bools": array("coef", lambda x: x > 0),
    "coef short": array("coef", lambda x: x[:, :-1].copy()),
    "coef of one more": array("coef", lambda x: np.vstack([x, x[:1]])),
    "coef flat": array("coef", lambda x: x.ravel().copy()),
    "coef NaN": array("coef", lambda x: x * np.nan),
    "coef infinite": array("coef", lambda x: x + np.inf),
    "coef wide": wide(100_000),
    "scale 0": array("scale", lambda x: x * 0),
    "scale negative": array("scale", lambda x: -x),
    "mean empty": array("mean", lambda x: x[:0].copy()),
    "no coef": lambda a, m: a.pop("coef"),
    "an array more": lambda a, m: a.update(code=np.zeros(3)),
    "hidden alone": lambda a, m: a.update(hidden=np.zeros((3, 3))),
    "seen of floats": array("seen", lambda x: x.astype(np.float64)),
    "seen square": array("seen", lambda x: np.stack([x, x])),
    "no seen": lambda a, m: a.pop("seen"),
    "recipe of text": entry("preprocess", '"x"'),
    "recipe without end": entry("preprocess", "[" * 200_000),
    "all twice": lambda a, m: m.update(classes=m["classes"] + m["classes"]),
}
EITHER: dict[str, Change] = {  # harmless, or refused; in time, and without a crash
    "dtype >f8": layers(dtype=">f8"),
    "dtype of escapes": layers(dtype="\x1b[31m"),
    "layer of escapes": layers(layer="\x1b[31m\nx", name="\x1b[31m\nx"),
    "pool of nothing": layers(pool="nothing"),
    "crop 4096": recipe(crop=4096, resize=4096),
    "crop 2^40": recipe(crop=2**40, resize=2**40),
    "crop -1": recipe(crop=-1),
    "resize 0": recipe(resize=0),
    "std 0": recipe(std=[0, 0, 0]),
    "interpolation": recipe(interpolation="__class__"),
    "long class": entry("classes", json.dumps(["x" * 10_000_000, "b", "c"])),
    "class of escapes": entry("classes", json.dumps(["\x1b]0;x\x07", "b\nc", "=1+1"])),
    "scale tiny": array("scale", lambda x: np.full_like(x, 1e-45)),
    "coef huge": array("coef", lambda x: np.full_like(x, 3e38)),
    "key twice": entry("settings", '{"C": 1, "C": 2}'),
    "huge record": entry("record", json.dumps({"a": "x" * 5_000_000})),
    "unknown entry": entry("__class__", "x"),
    "another backbone": entry("backbone", '"resnet50"'),
    "backbone a path": entry("backbone", '"../../x.pth"'),
    "weights a path": entry("weights", '"/etc/passwd"'),
}
QUICK = ("coef wide", "dim 2^62", "classes without end", "dtype >f8", "coef huge")


@pytest.fixture(scope="module")
def few(taught, tmp_path_factory):
    """Six images."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((taught / "images").rglob("*.png"))[:6]:
        shutil.copy2(path, folder / path.name)
    return folder


def use(start: Starter, head: Path, taught: Path, few: Path, home: Path) -> list[int]:
    """Every verb that takes a head; the exit codes."""
    codes = []
    for words in (
        ("classify", "predict", head, taught / "c.h5", "-o", home / "p.csv"),
        ("classify", "predict", head, few, "-o", home / "q.csv"),
        ("classify", "evaluate", head, taught / "c.h5"),
    ):
        run = start.start(*words, folder=home)
        if run.poll(30) is None:  # what takes long, because the head has it so, says so
            assert "times the work" in run.err, run.err
            run.send(signal.SIGTERM)
            assert run.poll(3) == 3, run.err
        done = run.wait()
        assert done.code in (0, 2, 3), done.said
        for word in ("Traceback", "unexpected", "Warning"):
            assert word not in done.err, done.said
        assert len(done.err) < 100_000, "a megabyte of a message"
        codes.append(done.code)
    assert not list(home.rglob(CANARY)), "something was run"
    return codes


def attack(start: Starter, name: str, taught: Path, few: Path, home: Path) -> None:
    arrays, metadata = parts(taught / "h")
    (REFUSED | EITHER)[name](arrays, metadata)
    head = home / "h"
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, head, metadata)
    codes = use(start, head, taught, few, home)
    if name in REFUSED:
        assert codes == [2, 2, 2]
    labels = home / "p.csv"
    if name in ("scale tiny", "coef huge") and labels.exists():
        assert "nan" not in labels.read_text().lower(), "probabilities that are no numbers"


@pytest.mark.parametrize("name", QUICK)
def test_a_head_that_lies(start: Starter, taught, few, name, tmp_path):
    attack(start, name, taught, few, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED, *EITHER])
def test_every_head_that_lies(start: Starter, taught, few, name, tmp_path):
    attack(start, name, taught, few, tmp_path)


# Heads with something to run


class Reduced:
    """Unpickled, it runs a command."""

    def __reduce__(self):
        import os

        return os.system, (f"touch {CANARY}",)


def run_by_scikit_learn() -> object:
    import os

    return Pipeline([("x", FunctionTransformer(os.system)), ("y", LogisticRegression())])


def edited(model: object, change: Callable[[dict], object]) -> bytes:
    """What skops writes for a model, with its schema changed."""
    whole = BytesIO()
    with zipfile.ZipFile(BytesIO(skops.io.dumps(model))) as old, zipfile.ZipFile(whole, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "schema.json":
                schema = json.loads(data)
                data = json.dumps(change(schema) or schema).encode()
            new.writestr(name, data)
    return whole.getvalue()


def node(kind: str, **fields: object) -> Callable[[dict], dict]:
    """A schema whose root is a node of a kind, as an attacker writes it by hand."""

    def change(schema: dict) -> dict:
        head = {k: schema[k] for k in ("protocol", "_skops_version") if k in schema}
        return head | {"__loader__": kind, "__id__": 1} | fields

    return change


def sound() -> Pipeline:
    X = np.random.default_rng(0).normal(size=(30, 3))
    return Pipeline([("m", LogisticRegression())]).fit(X, np.arange(30) % 3)


TEXT = {"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "__id__": 9}
TEXT |= {"content": json.dumps(f"touch {CANARY}"), "is_json": True}
ARGUMENTS = {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode"}
ARGUMENTS |= {"__id__": 8, "content": [TEXT]}
SYSTEM = {"__class__": "function", "__module__": "posix", "__loader__": "FunctionNode"}
SYSTEM |= {"__id__": 7, "content": {"module_path": "os", "function": "system"}}


def payloads() -> dict[str, bytes]:
    posix = {"__class__": "system", "__module__": "posix"}
    named = {"__class__": "system", "__module__": "os"}
    return {
        "pickle": pickle.dumps(Reduced()),
        "function": skops.io.dumps(run_by_scikit_learn()),
        "object": edited(sound(), node("ObjectNode", **named, content=ARGUMENTS)),
        "reduce": edited(sound(), node("ReduceNode", **named, reduce={"args": ARGUMENTS})),
        "operator": edited(
            sound(), node("OperatorFuncNode", __class__="attrgetter", __module__="operator",
                          attrs=ARGUMENTS)
        ),
        "operator of another module": edited(
            sound(), node("OperatorFuncNode", **posix, attrs=ARGUMENTS)
        ),
        "method": edited(
            sound(),
            node("MethodNode", **named, content={"func": "system", "obj": SYSTEM}),
        ),
        "method of builtins": edited(
            sound(),
            node("MethodNode", __class__="str", __module__="builtins",
                 content={"func": "__reduce_ex__", "obj": TEXT}),
        ),
        "type": edited(sound(), node("TypeNode", **named)),
        "partial": edited(
            sound(),
            node("PartialNode", __class__="partial", __module__="functools",
                 content={"func": SYSTEM, "args": ARGUMENTS, "kwds": {}, "namespace": None}),
        ),
        "unknown loader": edited(sound(), node("NoNode", **named)),
        "circle": edited(sound(), node("CachedNode", **named)),
        "not zip": b"PK\x03\x04" + bytes(99),
        "tree": skops.io.dumps(__import__("sklearn.tree").tree.DecisionTreeClassifier()),
        "unfitted": skops.io.dumps(Pipeline([("m", LogisticRegression())])),
    }  # fmt: skip


PAYLOADS = tuple(payloads())


def test_no_payload_is_run(start: Starter, taught, tmp_path):
    arrays, metadata = parts(taught / "h")
    for k, payload in enumerate(payloads().values()):
        head = tmp_path / f"{k}.head"
        found = {"seen": arrays["seen"], "skops": np.frombuffer(payload, np.uint8)}
        save_file(found, head, metadata)
    code = tmp_path / "code.py"
    code.write_text(
        "import sys\nfrom classify import ClassifyError, load_head\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        load_head(path)\n"
        "    except ClassifyError as error:\n        assert path in str(error)\n"
        "    else:\n        sys.exit(f'{path} was taken')\n"
    )
    done = start(str(code), *sorted(tmp_path.glob("*.head")), folder=tmp_path)
    assert done.code == 0, done.said
    assert not list(tmp_path.rglob(CANARY)), "something was run"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_in_a_head_is_run(start: Starter, taught, few, name, tmp_path):
    arrays, metadata = parts(taught / "h")
    data = np.frombuffer(payloads()[name], np.uint8)
    save_file({"seen": arrays["seen"], "skops": data}, tmp_path / "h", metadata)
    assert use(start, tmp_path / "h", taught, few, tmp_path) == [2, 2, 2]


def test_a_file_that_is_a_pickle_altogether(start: Starter, taught, few, tmp_path):
    (tmp_path / "h").write_bytes(pickle.dumps(Reduced()))
    assert use(start, tmp_path / "h", taught, few, tmp_path) == [2, 2, 2]
