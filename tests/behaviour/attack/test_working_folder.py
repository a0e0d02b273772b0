"""Modules in the folder that a command is called in, and a shared folder for temporary files.

Nothing of either ever runs: downloaded folders and /tmp belong to strangers.
"""

import getpass
import os
import sys
from pathlib import Path

import pytest

from .starting import Starter, left_after

MODULES = (
    *("joblib", "multiprocessing", "loky", "cloudpickle", "pickle", "struct", "json", "random"),
    *("numpy", "scipy", "sklearn", "threadpoolctl", "torch", "torchvision", "h5py", "PIL"),
    *("rich", "typer", "click", "safetensors", "skops", "bokeh", "jinja2", "onnx", "pyarrow"),
    *("onnxruntime", "onnxscript", "os", "re", "signal", "subprocess", "tempfile", "socket"),
    *("logging", "hashlib", "ctypes", "threading", "typing", "types", "zipfile", "warnings"),
    *("site", "sitecustomize", "usercustomize", "encodings", "featurize", "classify", "triton"),
    *("sympy", "networkx", "filelock", "fsspec", "mpmath", "psutil", "setuptools", "runpy"),
)
HEADS = ("--heads", "ncm,ridge", "--layers", "each")


@pytest.fixture
def planted(tmp_path):
    """A folder of such modules; ``planted.ran()`` says which of them ran."""
    folder, canary = tmp_path / "downloaded", tmp_path / "ran"
    folder.mkdir()
    canary.mkdir()
    for name in MODULES:
        code = f"open({str(canary / name)!r}, 'w').close()\nraise SystemExit('{name} was run')\n"
        (folder / f"{name}.py").write_text(code)
    return folder, lambda: sorted(path.name for path in canary.iterdir())


def verbs(taught: Path, home: Path) -> dict[str, tuple[object, ...]]:
    images, cache, head = taught / "images", taught / "c.h5", taught / "h"
    seedling = ("--backbone", "seedling", "--device", "cpu")
    run = ("featurize", "run", images, "-o", home / "n.h5", *seedling)
    return {
        "compare": ("classify", "compare", cache, *HEADS),
        "run": (*run, "--engine", "eager"),
        "run exported": (*run, "--engine", "onnxruntime"),
        "run compiled": (*run, "--engine", "compile"),
        "layers": ("featurize", "layers", "seedling"),
        "backbones": ("featurize", "backbones"),
        "info": ("featurize", "info", cache),
        "verify": ("featurize", "verify", cache, images),
        "export": ("featurize", "export", cache, "-o", home / "x.parquet"),
        "help": ("classify", "--help"),
        "fit": ("classify", "fit", cache, "-o", home / "h2"),
        "fit knn": ("classify", "fit", cache, "-o", home / "h3", "--head", "knn"),
        "predict": ("classify", "predict", head, images, "-o", home / "p.csv"),
        "evaluate": ("classify", "evaluate", head, cache),
        "advise": ("classify", "advise", cache),
        "report": ("classify", "report", cache, "-o", home / "r.html", *HEADS),
        "finetune": (
            "classify", "finetune", images, "-o", home / "m", *seedling,
            "--tune", "stage4", "--epochs", "1",
        ),
        "auto": ("classify", "auto", images, "-o", home / "a", *seedling, "--epochs", "1"),
    }  # fmt: skip


def attack(start: Starter, taught: Path, planted, name: str, home: Path) -> None:
    folder, ran = planted
    words = verbs(taught, home)[name]
    for kept in taught.glob("*.kept"):  # so that there is something to train
        for path in kept.iterdir():
            path.unlink()
    run = start.start(*words, folder=folder, fresh=True)
    done = run.wait(400)
    assert not left_after(run.pid, 20)
    assert ran() == [], f"modules of the working folder were run: {done.said}"
    assert done.code == 0, done.said


@pytest.mark.long
def test_nothing_of_the_working_folder_runs(start: Starter, taught, planted, tmp_path):
    attack(start, taught, planted, "compare", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", verbs(Path(), Path()))
def test_from_no_verb(start: Starter, taught, planted, name, tmp_path):
    attack(start, taught, planted, name, tmp_path)


@pytest.mark.slow
def test_nor_from_python(start: Starter, taught, planted, tmp_path):
    """A program that merely imports the package is as safe."""
    folder, ran = planted
    code = tmp_path / "code.py"
    code.write_text(
        "import sys\nfrom classify import compare\n"
        "if __name__ == '__main__':\n"
        "    compare(sys.argv[1], heads='ncm,lda', layers='each', jobs=2)\n"
    )
    for kept in taught.glob("*.kept"):
        for path in kept.iterdir():
            path.unlink()
    done = start(str(code), taught / "c.h5", folder=folder, hang=120)
    assert ran() == [], f"modules of the working folder were run: {done.said}"
    assert done.code == 0, done.said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["another's", "a link", "writable to all"])
def test_no_cache_of_compiled_code_in_a_shared_folder(start: Starter, taught, kind, tmp_path):
    """torch's own place for it, made beforehand by somebody else, stays as it was."""
    shared, home = tmp_path / "tmp", tmp_path / "home"
    for folder in (shared, home):
        folder.mkdir()
    place = shared / f"torchinductor_{getpass.getuser()}"
    target = tmp_path / "elsewhere"
    target.mkdir()
    if kind == "a link":
        place.symlink_to(target)
    else:
        place.mkdir()
        place.chmod(0o777)
    if kind == "another's":
        if os.getuid() != 0:
            pytest.skip("only root can make a folder that is another user's")
        os.chown(place, 65_534, 65_534)
    environment = {"TMPDIR": str(shared), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    words = ("run", taught / "images", "-o", tmp_path / "n.h5", "--backbone", "seedling")
    options = ("--device", "cpu", "--engine", "compile")
    run = start.start("featurize", *words, *options, environment=environment, fresh=True)
    done = run.wait(500)
    assert done.code == 0, done.said
    assert list(place.iterdir()) == [], "compiled code was put where others can change it"
    assert list(target.iterdir()) == []
    for found in tmp_path.rglob("fxgraph"):  # wherever it is now, nobody else can write there
        above = [path for path in found.parents if tmp_path in path.parents]
        closed = [path for path in above if path.stat().st_mode & 0o077 == 0]
        assert closed, f"{found} is open to others"
        assert all(path.stat().st_uid == os.getuid() for path in above)


def test_the_modules_would_run(planted):
    """The attack itself: a plain `python -c` in the folder runs them."""
    import subprocess

    folder, ran = planted
    words = [sys.executable, "-c", "import joblib"]
    subprocess.run(words, cwd=folder, capture_output=True, check=False)
    assert ran()
