"""`Extractor.differences`: the one place that says that features are made otherwise."""

from dataclasses import replace

import pytest

from featurize import Preprocess
from featurize.cache.format import Extractor

PREPROCESS = Preprocess(resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
MADE = Extractor("toy", "V1", "5" * 64, PREPROCESS, "float32", {"torch": "2"})


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, {}),
        ({"backbone": "net"}, {"backbone": ("toy", "net")}),
        ({"weights_sha256": "6" * 64}, {"weights_sha256": ("5" * 64, "6" * 64)}),
        ({"precision": "bf16"}, {"precision": ("float32", "bf16")}),
        ({"preprocess": replace(PREPROCESS, crop=7)}, {"preprocess.crop": (8, 7)}),
        ({"preprocess": replace(PREPROCESS, fit="squash")}, {"preprocess.fit": ("crop", "squash")}),
        (
            {"preprocess": replace(PREPROCESS, mean=(0, 0, 0), decode="fast"), "backbone": "net"},
            {
                "backbone": ("toy", "net"),
                "preprocess.decode": ("exact", "fast"),
                "preprocess.mean": ([0.5] * 3, [0.0] * 3),
            },
        ),
    ],
)
def test_what_decides_features_is_compared(changes, found):
    assert MADE.differences(replace(MADE, **changes)) == found
    assert list(MADE.differences(replace(MADE, **changes))) == list(found)


def test_a_fit_that_is_left_out_differs_both_ways():
    squashed = replace(MADE, preprocess=replace(PREPROCESS, fit="squash"))
    assert squashed.differences(MADE) == {"preprocess.fit": ("squash", "crop")}
    bordered = replace(MADE, preprocess=replace(PREPROCESS, fit="border"))
    assert squashed.differences(bordered) == {"preprocess.fit": ("squash", "border")}


def test_names_and_versions_decide_nothing():
    assert MADE.differences(replace(MADE, weights="a copy", environment={"torch": "3"})) == {}
