"""`Preprocess`: checked once, a mapping to whoever knew it as a dict, the same JSON as ever."""

import copy
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from featurize import Preprocess
from featurize.errors import CallError
from featurize.fingerprint import canonical_json

VALUES = {
    **{"crop": 224, "decode": "exact", "interpolation": "bilinear"},
    **{"mean": [0.5, 0.25, 0.0], "resize": 256, "std": [1.0, 1.0, 2.0]},
}


@pytest.fixture
def made() -> Preprocess:
    return Preprocess(resize=256, crop=224, mean=(0.5, 0.25, 0), std=(1, 1, 2))


def test_it_gives_and_takes_a_dict(made):
    assert Preprocess.from_dict(VALUES) == made
    assert made.to_dict() == VALUES
    assert list(made.to_dict()) == sorted(VALUES)
    assert json.dumps(made.to_dict()) == json.dumps(VALUES)
    assert canonical_json(dict(made)) == canonical_json(VALUES)
    assert Preprocess.from_dict(made) is made


def test_it_serves_as_the_dict_that_it_was(made):
    assert made == VALUES
    assert made["crop"] == made.get("crop") == 224
    assert made["mean"] == [0.5, 0.25, 0.0]
    assert {**made, "crop": 8} == {**VALUES, "crop": 8}
    assert sorted(made.items()) == sorted(VALUES.items())
    assert "size" not in made
    with pytest.raises(KeyError):
        made["size"]


def test_it_is_frozen_and_travels(made):
    with pytest.raises(FrozenInstanceError):
        made.crop = 8
    assert copy.deepcopy(made) == made
    assert replace(made, decode="fast").decode == "fast"
    assert replace(made, decode="fast") != made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 0}, "resize must be 1 to 4096 pixels, not 0"),
        ({"crop": 4097}, "crop must be 1 to 4096 pixels"),
        ({"crop": True}, "crop must be 1 to 4096 pixels, not True"),
        ({"crop": 8.0}, "crop must be 1 to 4096 pixels"),
        ({"mean": [0.5, 0.5]}, "mean must be three numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean must be three numbers"),
        ({"std": [0.5, 0.5, 0]}, "std must be three numbers"),
        ({"std": "abc"}, "std must be three numbers"),
        ({"interpolation": "sinc"}, "interpolation is one of nearest"),
        ({"interpolation": ["bilinear"]}, "interpolation is one of nearest"),
        ({"decode": "slow"}, "decode is one of exact, quick, fast, fastest, not 'slow'"),
        ({"fit": "pad"}, "fit is one of crop, squash, border, not 'pad'"),
        ({"fit": None}, "fit is one of crop, squash, border, not None"),
        ({"size": 8}, "has the keys crop, decode"),
    ],
)
def test_what_cannot_be_is_refused(change, message, made):
    with pytest.raises(CallError, match=message):
        Preprocess.from_dict({**VALUES, **change})
    if "size" not in change:
        with pytest.raises(CallError, match=message):
            replace(made, **change)


def test_a_fit_is_part_of_the_value_unless_it_is_crop(made):
    assert Preprocess.from_dict({**VALUES, "fit": "crop"}) == made == VALUES
    squashed = replace(made, fit="squash")
    assert squashed.to_dict() == {**VALUES, "fit": "squash"}
    assert list(squashed) == sorted({**VALUES, "fit": "squash"})
    assert Preprocess.from_dict(squashed.to_dict()) == squashed != made
    assert replace(made, fit="border") != squashed
    assert made.describe() == "shorter side to 256, centre 224 x 224, bilinear"
    assert squashed.describe() == "both sides to 256, centre 224 x 224, bilinear"


@pytest.mark.parametrize("name", ["resize", "crop", "mean", "std"])
def test_a_missing_value_is_named(name):
    with pytest.raises(CallError, match=f"{name} must be"):
        Preprocess.from_dict({key: value for key, value in VALUES.items() if key != name})


def test_no_dict_is_refused():
    with pytest.raises(CallError, match="has the keys"):
        Preprocess.from_dict([1, 2])


def test_it_is_had_without_torch():
    code = "import sys; from featurize import Preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
