"""A name that is mistyped gets a suggestion, whatever it is a name of, in both commands."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .attack.starting import Starter

SPECIMENS = Path(__file__).parents[1] / "specimens"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    starter = Starter(tmp_path_factory.mktemp("said"))
    yield starter
    starter.end()


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("featurize run HERE -o c.h5 --engine egaer", "eager"),
        ("featurize run HERE -o c.h5 --pool avgmx", "avgmax"),
        ("featurize run HERE -o c.h5 --dtype Float32", "float32"),
        ("featurize run HERE -o c.h5 --precision bf6", "bf16"),
        ("featurize run HERE -o c.h5 --decode exat", "exact"),
        ("featurize run HERE -o c.h5 --device cpuu", "cpu"),
        ("featurize run HERE -o c.h5 --backbone ResNet50x", "resnet50"),
        ("featurize run HERE -o c.h5 --backbone timm:resnet5O", "resnet50"),
        ("featurize export CACHE -o c.npz --layers stage5", "stage4"),
        ("classify fit CACHE -o h --head sofmax", "softmax"),
        ("classify fit CACHE -o h --layer stag2", "stage2"),
        ("classify fit CACHE -o h --labels TABLE --column lable", "label"),
        ("classify fit CACHE -o h --labels TABLE --prepare rootl2", "root-l2"),
        ("classify compare CACHE --labels TABLE --metric acuracy", "accuracy"),
        ("classify compare CACHE --labels TABLE --heads softmax,nmc", "ncm"),
        ("classify advise CACHE --size smal", "small"),
        ("classify advise CACHE --similarity diferent", "different"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(line, meant, start, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("cache.h5", "digit.csv"):
        shutil.copy(SPECIMENS / name, tmp_path)
    places = {"HERE": images, "CACHE": tmp_path / "cache.h5", "TABLE": tmp_path / "digit.csv"}
    name, *words = [str(places.get(word, word)) for word in line.split()]
    ended = start(name, *words, folder=tmp_path)
    assert ended.code == 2, ended.said
    assert f"did you mean '{meant}'?" in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


def test_a_label_that_the_head_does_not_know_gets_one_too(start, tmp_path):
    """A notice, no error: the others are scored."""
    for name in ("cache.h5", "heads/ncm.head"):
        shutil.copy(SPECIMENS / name, tmp_path)
    table = (SPECIMENS / "digit.csv").read_text()
    (tmp_path / "t.csv").write_text(table.replace(",d1\n", ",D1\n"))
    ended = start(
        "classify", "evaluate", "ncm.head", "cache.h5", "--labels", "t.csv", folder=tmp_path
    )
    assert ended.code == 0, ended.said
    assert "counted as wrong: D1 (did you mean 'd1'?)" in ended.err


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("classify fit CACHE -o h --labels a.csv --labels b.csv", "--labels"),
        ("classify compare CACHE --labels a.csv --labels b.csv --column x --column y", "--column"),
        ("featurize run . -o c.h5 --layers stage1 --layers=stage2", "--layers"),
    ],
)
def test_an_option_with_one_value_is_not_given_twice(line, option, start, tmp_path):
    shutil.copy(SPECIMENS / "cache.h5", tmp_path)
    name, *words = line.replace("CACHE", str(tmp_path / "cache.h5")).split()
    ended = start(name, *words, folder=tmp_path)
    assert ended.code == 2, ended.said
    assert ended.err.startswith(f"error: {option} is given twice, and takes one value; see `")
