"""One architecture, one set of photographs, two sources: the advice goes by what it measures."""

import pytest

from classify import advise
from featurize import run

pytestmark = pytest.mark.slow
PER_CLASS = 150


@pytest.fixture(scope="module")
def photographs(cifar10, tmp_path_factory):
    """The first training images of each class."""
    folder = tmp_path_factory.mktemp("photographs")
    for label in sorted((cifar10 / "train").iterdir()):
        (folder / label.name).mkdir()
        for path in sorted(label.iterdir())[:PER_CLASS]:
            (folder / label.name / path.name).hardlink_to(path)
    return folder


@pytest.mark.parametrize(
    ("source", "similarity", "strategy"),
    [("imagenet", "similar", "linear-probe"), ("inat-birds", "different", "truncated-probe")],
)
def test_the_source_decides(real, photographs, tmp_path, source, similarity, strategy):
    pytest.importorskip("timm", reason="timm is not installed")
    folder = real / f"mobilenetv2_100-{source}"
    run(photographs, tmp_path / "c.h5", backbone=str(folder), layers="auto")
    found = advise(tmp_path / "c.h5")
    assert (found.similarity, found.strategy) == (similarity, strategy)
    profile = {
        entry["layer"]: entry["validation"] for entry in found.to_dict()["evidence"]["profile"]
    }
    *lower, last = profile.values()
    if source == "inat-birds":
        assert max(lower) > last + 0.04
        assert found.layer == max(profile, key=profile.__getitem__) == "blocks.4"
    else:
        assert last > max(lower) - 0.02
