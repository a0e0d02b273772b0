"""The documents are run: all pages' commands and Python; docs/cli.md is what --help prints."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages.blocks import Page, read_page
from .pages.running import Reader
from .pages.verbs import check_calls

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def marked(path: Path) -> object:
    """A page as a parameter of a test: slow where its top says so."""
    marks = [pytest.mark.slow] if read_page(path).slow else []
    return pytest.param(path, marks=marks, id=str(path.relative_to(ROOT)))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    one = Reader(tmp_path_factory.mktemp("pages"))
    yield one
    one.end()


def without_downloads(words: list[str]) -> list[str] | None:
    """A command with the backbone that needs no download; None if it needs one."""
    downloads = {"convnext_tiny", "squeezenet1_1"} & set(words) or ".lvd142m" in " ".join(words)
    if words[:2] == ["featurize", "layers"] or downloads:
        return None  # measures for half a minute, or needs a download: tested elsewhere
    if words[:2] in (["featurize", "run"], ["classify", "auto"]) and "--backbone" not in words:
        words = [*words, "--backbone", "seedling"]
    here = {"resnet50": "seedling", "layer3": "stage3", "layer2,layer3:max": "stage2,stage3:max"}
    return [here.get(word, word) for word in words]


def run(reader: Reader, page: Page, record_property) -> None:
    if page.path in (README, GUIDE):
        count = reader.run(page, without_downloads, world="few")
    else:
        count = reader.run(page)
    record_property("blocks", count)
    print(f"{page.path.relative_to(ROOT)}: {count} blocks run")


@pytest.mark.long
@pytest.mark.parametrize("path", [marked(path) for path in PAGES])
def test_page_runs(path, reader, record_property):
    run(reader, read_page(path), record_property)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_calls_what_is_there(path):
    """Also what cannot be run here: verbs and options are those of the commands."""
    check_calls(read_page(path))


def load_script(name: str):
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.long
def test_cli_page_is_current():
    page = load_script("make_cli").page()
    assert (ROOT / "docs" / "cli.md").read_text() == page, "run `make docs`"


def test_tables_are_current():
    make_tables = load_script("make_tables")
    results = json.loads(make_tables.RESULTS.read_text())
    pages = list(make_tables.pages())
    assert {path.name for path in pages} >= {"engines.md", "backbones.md"}
    for path in pages:
        text = path.read_text()
        assert text == make_tables.fill(text, results), f"{path.name}: run `make docs`"


def test_the_readmes_figures_are_those_of_the_benchmark():
    (measured,) = json.loads((ROOT / "benchmarks" / "results.json").read_text())["label_sets"][
        "tables"
    ]
    lines = [line for line in README.read_text().splitlines() if line.startswith("|")]
    for row in measured["rows"]:
        seconds = {f"{row[key]:.0f}" for key in ("seconds", "script: seconds") if key in row}
        wanted = seconds | {
            figure.lstrip("0") for figure in re.findall(r"0\.\d+", row.get("accuracy", ""))
        }
        assert any(wanted <= set(re.findall(r"[\d.]+", line)) for line in lines), row


def test_a_table_that_is_not_current_is_noticed():
    make_tables = load_script("make_tables")
    results = json.loads(make_tables.RESULTS.read_text())
    text = (ROOT / "docs" / "engines.md").read_text()
    results["engines"]["tables"][0]["rows"][0]["images/s"] = 1234.5
    assert make_tables.fill(text, results) == text.replace("21.1", "1,234", 1) != text


def test_pictures_are_current():
    for name, draw in load_script("make_pictures").DRAWN.items():
        drawn = (ROOT / "docs" / "pictures" / name).read_text()
        assert drawn == draw(), f"{name}: run `make docs`"


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_demo_is_one_cache_for_all_tasks():
    makefile = (ROOT / "Makefile").read_text()
    assert makefile.count("featurize run $(DIGITS)") == 1
    assert len(set(re.findall(r"--labels \$\(DIGITS\)/\w+\.csv", makefile))) == 3


@pytest.mark.slow
def test_example_chooses_a_layer(tmp_path):
    subprocess.run([sys.executable, ROOT / "data" / "digits" / "make.py", tmp_path], check=True)
    script = ROOT / "examples" / "layer_as_hyperparameter.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = float(re.search(r"accuracy (0\.\d+)", done.stdout).group(1))
    assert "1797 images through the network" in done.stdout
    assert accuracy > 0.9
