"""What loading a network does not need: timm for the others, torch for what is finished."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def poison(folder: Path, *names: str, how: str) -> dict[str, str]:
    """An environment in which importing some packages ends in a certain way."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(how.replace("NAME", name))
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), others]))}


@pytest.fixture(scope="module")
def deadly(tmp_path_factory):
    """Importing torch or timm ends the process."""
    how = "import os, sys\nprint('POISON NAME', file=sys.stderr, flush=True)\nos._exit(99)\n"
    names = ("torch", "torchvision", "timm", "huggingface_hub")
    return poison(tmp_path_factory.mktemp("deadly"), *names, how=how)


@pytest.fixture(scope="module")
def without_timm(tmp_path_factory):
    """timm is not installed."""
    how = "raise ModuleNotFoundError(\"No module named 'NAME'\", name='NAME')\n"
    return poison(tmp_path_factory.mktemp("without"), "timm", how=how)


@pytest.fixture(scope="module")
def finished(command, make_harsh, write_folder, pictures, tmp_path_factory):
    """A folder with a network, and the finished cache that it made."""
    home = tmp_path_factory.mktemp("finished")
    folder = write_folder(home / "vit", make_harsh("test_vit"))
    line = ("run", pictures, "-o", home / "c.h5", "--backbone", folder, "--layers", "auto")
    done = command("featurize", *line)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--backbone", "HOME/vit"),
        ("--backbone", "HOME/vit", "--layers", "auto"),
        ("--layers", "last"),
        ("--layers", "blocks.1,pre_logits"),
        ("--backbone", "timm:test_vit"),
    ],
    ids=" ".join,
)
def test_a_finished_cache_needs_neither_timm_nor_torch(
    options, command, deadly, finished, pictures
):
    words = [word.replace("HOME", str(finished)) for word in options]
    line = ("run", pictures, "-o", finished / "c.h5", "--json", *words)
    done = command("featurize", *line, env=deadly)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["computed"], found["reused"]) == (0, 3)


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_reading_a_cache_needs_neither(verb, command, deadly, finished):
    done = command("featurize", verb, finished / "c.h5", "--json", env=deadly)
    assert done.returncode == 0, done.stderr


def test_the_poison_works(command, deadly, finished, pictures):
    line = ("run", pictures, "-o", finished / "c.h5", "--layers", "norm")
    done = command("featurize", *line, env=deadly)
    assert done.returncode == 99
    assert "POISON" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import featurize, classify",
        "import featurize.cli.app, classify.cli.app",
        "import featurize.backbones.names, featurize.backbones.licences",
        "import featurize.extraction.options, featurize.extraction.setup",
    ],
)
def test_importing_leaves_timm_alone(code, deadly):
    done = subprocess.run([sys.executable, "-c", code], env=deadly, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["run", "layers", "backbones"])
def test_help_leaves_timm_alone(verb, command, deadly):
    done = command("featurize", verb, "--help", env=deadly)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "run PHOTOS -o OUT --backbone timm:test_vit",
        *(
            pytest.param(line, marks=pytest.mark.slow)
            for line in (
                "run PHOTOS -o OUT --backbone hf-hub:me/vit",
                "run PHOTOS -o OUT --backbone HOME/vit",
                "layers timm:test_vit",
            )
        ),
        "backbones timm:*vit*",
    ],
)
def test_without_timm_it_is_said_how_to_get_it(
    line, command, without_timm, finished, pictures, tmp_path
):
    places = {"PHOTOS": pictures, "OUT": tmp_path / "c.h5", "HOME": finished}
    for place, path in places.items():
        line = line.replace(place, str(path))
    done = command("featurize", *line.split(), env=without_timm)
    assert done.returncode == 2, done.stderr
    assert "pip install 'headgraft[timm]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchvision_works_without_timm(command, without_timm, pictures, tmp_path):
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    done = command("featurize", *line, env=without_timm)
    assert done.returncode == 0, done.stderr
    done = command("featurize", "backbones", "--json", env=without_timm)
    assert done.returncode == 0, done.stderr
