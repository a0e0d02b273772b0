"""A folder of parts that lacks one, or has a strange one: every verb says so."""

import shutil

import pytest

from featurize import FeatureCache

from .conftest import COUNT, LAYERS

READERS = {
    "verify": ("featurize", "verify", "D"),
    "export": ("featurize", "export", "D", "-o", "O.npz"),
    "join": ("featurize", "join", "D", "-o", "O.h5"),
    "fit": ("classify", "fit", "D", "-o", "O.head"),
    "compare": ("classify", "compare", "D"),
    "advise": ("classify", "advise", "D"),
    "report": ("classify", "report", "D", "-o", "O.html"),
}


@pytest.mark.parametrize("verb", READERS)
def test_a_part_that_is_gone_is_named(own, command, verb):
    (own / "parts" / "part-00001.h5").unlink()
    names = {"D": f"{own / 'parts'}/"}
    line = [names.get(w, own / w if w.startswith("O.") else w) for w in READERS[verb]]
    done = command(*line)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "part-00001.h5" in said
    assert "featurize run" in said
    assert "Traceback" not in said
    assert not list(own.glob("O.*"))


def test_a_part_that_is_gone_is_made_again(own, run):
    whole = FeatureCache(own / "parts").features("stage4").copy()
    n_lost = FeatureCache(own / "parts" / "part-00001.h5").n_rows
    (own / "parts" / "part-00001.h5").unlink()
    said = run(own / "photos", f"{own / 'parts'}/")
    assert f"{n_lost} computed, {COUNT - n_lost} reused" in said
    assert (FeatureCache(own / "parts").features("stage4") == whole).all()


@pytest.mark.parametrize("layers", ["stage3,stage4", "stage2"])
def test_a_part_of_another_cache_is_refused(own, command, run, layers):
    """Of the same images, made at another size: neither verb nor run takes it for one of theirs."""
    part = own / "parts" / "part-00001.h5"
    for path in FeatureCache(part).paths:
        (own / "some" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(own / "photos" / path, own / "some" / path)
    part.unlink()
    run(own / "some", part, "--backbone", "seedling", "--size", "24", "--layers", layers)
    before = part.read_bytes()
    for said in (
        command("classify", "fit", own / "parts", "-o", own / "o.head").stderr,
        run(own / "photos", f"{own / 'parts'}/", code=2),
        run(own / "photos", f"{own / 'parts'}/", *LAYERS, code=2),
    ):
        assert "part-00001.h5 was made otherwise than" in said, said
        assert (
            "preprocess.crop is 24 and not 32. One of them is of another cache: remove it" in said
        )
        assert "--layers" not in said  # which would not help
        assert "option" not in said
    assert part.read_bytes() == before
