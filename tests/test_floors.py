"""The house stands as docs/architecture.md draws it: floors, small files, and torch last."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("featurize", "classify")
    for path in sorted((ROOT / package).rglob("*.py"))
}

DISTRIBUTIONS = {"Pillow": "PIL", "scikit-learn": "sklearn"} | {
    name: name.lower() for name in ("Bokeh", "Jinja2", "Markupsafe", "Rich", "Typer")
}
# What the document's table leaves out: they come with those it names.
COME_WITH = {"torch": ("torchvision", "safetensors")}
FLOORLESS = {4: {"pyarrow"}, 5: {"typer"}}  # for one verb; for the command line


def tables() -> list[str]:
    """The blocks of the document that hold the floors of `featurize` and of `classify`."""
    found = re.findall(r"^```\n(0  errors.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 2, "docs/architecture.md has lost a table of floors"
    return found


def floors(text: str, package: str) -> tuple[dict[str, int], dict[int, set[str]]]:
    """Floor by module, and what each floor is the first to import."""
    modules, brings = {}, {}
    for line in text.strip().splitlines():
        number, names, *libraries = re.split(r"\s{2,}", line.strip())
        modules |= {f"{package}.{name}": int(number) for name in names.split()}
        found = {word.strip() for word in "".join(libraries).split(",")} - {"", "stdlib"}
        found = {DISTRIBUTIONS.get(name, name) for name in found}
        brings[int(number)] = found.union(*(COME_WITH.get(name, ()) for name in found))
    return modules, brings


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def imported(module: str, *, only_at_once: bool = False) -> set[str]:
    """Everything a module imports, in functions and for types too unless `only_at_once`."""
    nodes = list(ast.walk(tree(module)))
    if only_at_once:
        nodes = list(at_once(tree(module).body))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written out in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
    return found


def at_once(body: list[ast.stmt]):
    """Statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_once(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from at_once(getattr(node, name, []))


def torch_rooms(package: str) -> set[str]:
    """The modules of a package that the document says import torch."""
    text = re.search(
        r"torch is imported in (.*?) alone,\s+and of `classify` in (.*?);", PAGE, re.DOTALL
    )
    assert "the seedling's" in text.group(1)
    rooms = {
        "featurize": {*re.findall(r"`([\w.]+)`", text.group(1)), "seedling.network"},
        "classify": set(re.findall(r"`([\w.]+)`", text.group(2))),
    }
    return {f"{package}.{name}" for name in rooms[package]}


def floor_of(module: str, known: dict[str, int]) -> int:
    """A module's floor; what lies in a folder stands where the folder does."""
    while module not in known:
        module, _, last = module.rpartition(".")
        assert module, f"{last} has no floor"
    return known[module]


HOUSES = {
    name: floors(t, name) for name, t in zip(("featurize", "classify"), tables(), strict=True)
}


@pytest.mark.parametrize("package", HOUSES)
def test_every_module_has_a_floor(package):
    known = HOUSES[package][0]
    inside = {name for name in FILES if name.startswith(package + ".")}
    unknown = {n for n in inside if n not in known and n.rpartition(".")[0] not in known}
    assert (
        unknown - {"featurize.backbones.seedling", "featurize.backbones.seedling.network"} == set()
    )
    assert set(known) <= inside


@pytest.mark.parametrize("package", HOUSES)
def test_imports_go_down_or_sideways(package):
    known = HOUSES[package][0] | {"featurize.backbones.seedling": 3}
    wrong = []
    for module in FILES:
        if not module.startswith(package + "."):
            continue
        for other in imported(module):
            if not other.startswith(package + "."):
                continue
            here, there = floor_of(module, known), floor_of(other, known)
            if there > here:
                wrong.append(f"{module} ({here}) imports {other} ({there})")
    assert wrong == []


def test_no_import_goes_in_a_circle():
    graph = {
        module: {name for name in imported(module) if name in FILES and name != module}
        for module in FILES
        if module not in HOUSES  # a package's front only names what is inside
    }
    for used in graph.values():
        used -= set(HOUSES)
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_classify_uses_featurize_and_never_the_other_way():
    users = {m for m in FILES if any(n.split(".")[0] == "featurize" for n in imported(m))}
    assert any(m.startswith("classify") for m in users)
    wrong = {m for m in FILES if m.startswith("featurize")} & {
        m for m in FILES if any(n.split(".")[0] == "classify" for n in imported(m))
    }
    assert wrong == set()


def test_classify_reads_caches_through_floors_without_torch():
    """Whatever of `featurize` it imports stands below the floor where torch begins.

    Three rooms run a backbone: they import more, but not before they do.
    """
    later = re.findall(r"`(\w+)`", re.search(r"(`.*) run a backbone", PAGE)[1])
    assert len(later) == 3
    known, brings = HOUSES["featurize"]
    ground = min(floor for floor, names in brings.items() if "torch" in names)
    for module in {m for m in FILES if m.startswith("classify")} - torch_rooms("classify"):
        for name in imported(module, only_at_once=module.rpartition(".")[2] in later):
            if name.startswith("featurize.") and name != "featurize.cli.progress":
                assert floor_of(name, known) < ground, f"{module} imports {name}"


@pytest.mark.parametrize("package", HOUSES)
def test_libraries_begin_at_their_floor(package):
    known, brings = HOUSES[package]
    known = known | {"featurize.backbones.seedling": 3}
    wrong = []
    for module in FILES:
        if not module.startswith(package + "."):
            continue
        here = floor_of(module, known)
        allowed = set().union(*(names for floor, names in brings.items() if floor <= here))
        tops = {name.split(".")[0] for name in imported(module)}
        tops -= {*sys.stdlib_module_names, "featurize", "classify"}
        wrong += [f"{module} imports {n}" for n in tops - allowed - FLOORLESS.get(here, set())]
    assert wrong == []


def test_torch_is_imported_only_where_the_document_says():
    named = torch_rooms("featurize") | torch_rooms("classify")
    libraries = ("torch", "torchvision", "safetensors.torch")
    found = {
        module
        for module in FILES
        if any(n == t or n.startswith(t + ".") for n in imported(module) for t in libraries)
    }
    assert found <= named
    # Every other one named imports one of these, and nobody else does before they are used.
    for module in FILES:
        brought = imported(module, only_at_once=True) & named
        assert bool(brought) <= (module in named), module
        assert module not in named or brought or module in found, module


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES.values()}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
    assert sorted(long.values())[len(long) // 2] < 200


def test_every_room_is_in_the_document():
    rooms = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    for module in FILES:
        parts = module.split(".")
        if len(parts) == 2:
            assert re.search(rf"`{parts[1]}(\.py|/)`", rooms), f"{module} is not described"


def test_data_is_no_package():
    """An installed package called `data` would collide with everybody else's."""
    assert not list((ROOT / "data").rglob("__init__.py"))


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
