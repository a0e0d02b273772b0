"""The documents are run: what the README says works, and docs/cli.md is what --help prints."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .attack.starting import Starter

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder `photos` of digits in two folders, and two label tables."""
    import csv

    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("world")
    digits = load_digits()
    tables: dict[str, list[tuple[str, str]]] = {"species": [], "season": []}
    for k in range(120):
        label = "even" if digits.target[k] % 2 == 0 else "odd"
        path = folder / "photos" / label / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[k] * 15).astype("uint8")).save(path)
        tables["species"].append((f"{label}/{k:03}.png", label))
        tables["season"].append((f"{label}/{k:03}.png", str(digits.target[k] > 4)))
    for name, rows in tables.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    return folder


def commands() -> list[str]:
    found = [line[2:].partition("#")[0].strip() for line in "".join(blocks("console")).splitlines()]
    return [line for line in found if line.startswith(("featurize", "classify"))]


def test_readme_commands_run(world):
    """Each as written, but with the backbone that needs no download."""
    start = Starter()
    for command in commands():
        words = shlex.split(command)
        downloads = {"convnext_tiny", "squeezenet1_1"} & set(words) or ".lvd142m" in command
        if words[:2] == ["featurize", "layers"] or downloads:
            continue  # measures for half a minute, or needs a download: tested elsewhere
        if words[:2] in (["featurize", "run"], ["classify", "auto"]) and "--backbone" not in words:
            words += ["--backbone", "seedling"]
        for there, here in (
            ("resnet50", "seedling"),
            ("layer3", "stage3"),
            ("layer2,layer3:max", "stage2,stage3:max"),
        ):
            words = [here if word == there else word for word in words]
        done = start(*words, folder=world, hang=300)
        assert done.code == 0, f"{command}\n{done.said}"
    start.end()


def test_readme_python_runs(world):
    for block in blocks("python"):
        subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=world, check=True)


def test_cli_page_is_current():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert (ROOT / "docs" / "cli.md").read_text() == make_cli.page(), "run `make docs`"


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_demo_is_one_cache_for_all_tasks():
    makefile = (ROOT / "Makefile").read_text()
    assert makefile.count("featurize run $(DIGITS)") == 1
    assert len(re.findall(r"--labels \$\(DIGITS\)/\w+\.csv", makefile)) == 3


@pytest.mark.slow
def test_example_chooses_a_layer(tmp_path):
    subprocess.run([sys.executable, ROOT / "data" / "digits" / "make.py", tmp_path], check=True)
    script = ROOT / "examples" / "layer_as_hyperparameter.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"accuracy (0\.\d+)", done.stdout).group(1))
    assert "1797 images through the network" in done.stdout
    assert accuracy > 0.9
