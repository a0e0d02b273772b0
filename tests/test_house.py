"""The house stands as docs/architecture.md draws it: floors, small files, and torch last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FILES = [
    path for package in ("featurize", "classify") for path in sorted((ROOT / package).rglob("*.py"))
]
SCRIPTS = ("benchmarks", "data/digits", "data/glyphs", "data/seedling", "examples", "docs")


def test_floors_stand():
    """What `make check` runs: the contracts of pyproject.toml."""
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_are_short():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert sorted(lines.values())[len(lines) // 2] < 200


def test_folders_are_small():
    folders = {path.parent for path in FILES}
    counts = {str(f.relative_to(ROOT)): len(list(f.glob("*.py"))) for f in folders}
    assert {name: count for name, count in counts.items() if count > 10} == {}


def test_folders_import_nothing_by_themselves():
    """So that importing one file of a folder costs that file alone."""
    for path in FILES:
        if path.name == "__init__.py" and path.parent.parent != ROOT:
            lines = path.read_text().splitlines()
            assert not [line for line in lines if line.startswith(("import ", "from "))], path


def test_every_file_is_in_the_document():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in FILES:
        if not path.stem.startswith("__"):
            assert path.stem in page, f"{path.relative_to(ROOT)} is not described"


def test_data_is_no_package():
    """An installed package called `data` would collide with everybody else's."""
    assert not list((ROOT / "data").rglob("__init__.py"))


@pytest.mark.long
@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_can_be_imported(folder):
    """No command behind a published figure has rotted."""
    code = (
        "import runpy, sys\nfrom pathlib import Path\n"
        f"folder = Path({str(ROOT / folder)!r})\nsys.path.insert(0, str(folder))\n"
        "for path in sorted(folder.glob('*.py')):\n"
        "    runpy.run_path(str(path), run_name='imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- torch stays unimported ----------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """An environment in which importing torch or torchvision ends the process."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("torch", "torchvision"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            f"import os, sys\nprint('POISON {name}', file=sys.stderr, flush=True)\nos._exit(99)\n"
        )
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), others]))}


@pytest.fixture(scope="module")
def made(tmp_path_factory, command):
    """Forty small images in two folders, and their cache, made with seedling."""
    home = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        folder = home / "images" / label
        folder.mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k:02}.png")
    line = ("run", home / "images", "-o", home / "c.h5", "--backbone", "seedling")
    done = command("featurize", *line, "--layers", "auto")
    assert done.returncode == 0, done.stderr
    return home


def test_the_poison_works(command, poisoned, made, tmp_path):
    """What does need torch dies of it: the other tests here are no empty ones."""
    line = ("run", made / "images", "-o", tmp_path / "new.h5", "--backbone", "seedling")
    done = command("featurize", *line, env=poisoned)
    assert done.returncode == 99
    assert "POISON torch" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import featurize",
        "import classify",
        "import featurize.cli.app, classify.cli.app",
        "from featurize import *",
        "from classify import *",
    ],
)
def test_importing_leaves_torch_alone(code, poisoned):
    if "*" in code:
        # Some public names are networks: asking for all of them asks for torch.
        package = code.split()[1]
        torch = {
            "Backbone",
            "load_backbone",
            "layer_costs",
            "FineTuneClassifier",
            "FineTuneMultiLabelClassifier",
            "FineTuneOrdinalClassifier",
            "FineTuneRegressor",
            "FineTuneResult",
            "FineTuneTargetResult",
            "TrainProgress",
            "finetune",
            "auto",
        }
        code = (
            f"import {package}\n"
            f"for name in set({package}.__all__) - {torch}:\n"
            f"    getattr({package}, name)"
        )
    code += "\nimport sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=poisoned, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["featurize", "classify"])
@pytest.mark.parametrize(
    "options", [("--help",), ("--version",), ()], ids=["help", "version", "nothing"]
)
def test_help_leaves_torch_alone(name, options, command, poisoned):
    done = command(name, *options, env=poisoned)
    assert done.returncode == (0 if options else 2), done.stderr
    assert "POISON" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        *(["featurize", verb, "--help"] for verb in ("run", "layers", "backbones")),
        *(
            ["classify", verb, "--help"]
            for verb in ("fit", "compare", "advise", "evaluate", "predict")
        ),
    ],
    ids=lambda line: " ".join(line[:2]),
)
def test_help_of_each_verb_leaves_torch_alone(line, command, poisoned):
    done = command(*line, env=poisoned)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        "classify fit HOME/c.h5 --head linear-svm --layer stage1,stage3 -o OUT/h2 --json",
        "classify compare HOME/c.h5 --heads softmax,ridge,knn --json",
        "classify advise HOME/c.h5 --similarity similar --json",
        "classify auto HOME/images -o OUT/m --cache HOME/c.h5 --size small --json",
        "featurize info HOME/c.h5 --json",
        "featurize verify HOME/c.h5 --json",
        "featurize export HOME/c.h5 -o OUT/f.npz --json",
        "featurize run HOME/images -o HOME/c.h5 --json",
        "featurize run HOME/images -o HOME/c.h5 --backbone seedling --layers auto --json",
        "featurize run HOME/images -o HOME/c.h5 --layers stage2 --retry-failed --json",
        "featurize run HOME/images -o HOME/c.h5 --rehash --json",
    ],
)
def test_a_finished_cache_needs_no_torch(line, command, poisoned, made, tmp_path):
    words = line.replace("HOME", str(made)).replace("OUT", str(tmp_path)).split()
    done = command(*words, env=poisoned)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if words[1] == "run":
        assert (found["computed"], found["reused"], found["failed"]) == (0, 40, 0)
    if words[1] == "fit":
        assert found["n_train"] + found["n_test"] == 40


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        "run nowhere -o OUT/c.h5",
        "run HOME/images -o nowhere/c.h5",
        "run HOME/images -o OUT/c.h5 --dtype float8",
        "run HOME/images -o OUT/c.h5 --weights OUT/none.pth",
        "run HOME/images -o OUT/c.h5 --layers stage4:sum --backbone seedling",
        "run HOME/images -o HOME/c.h5 --dtype float16",
        "run OUT -o OUT/c.h5",
    ],
)
def test_cheap_checks_come_before_torch(line, command, poisoned, made, tmp_path):
    words = line.replace("HOME", str(made)).replace("OUT", str(tmp_path)).split()
    done = command("featurize", *words, env=poisoned)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "c.h5").exists()
