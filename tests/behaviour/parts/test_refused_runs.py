"""A run that is refused leaves the parts as they were, and readable."""

from PIL import Image

from featurize import FeatureCache

from .conftest import CLASSES, COUNT, PER_CLASS


def look_at(folder):
    """Everything that is there and is no lock, with what it holds."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".lock"}


def test_a_typing_error_makes_nothing(photos, run, tmp_path):
    for options in (("--backbone", "seedlin"), ("--backbone", "seedling", "--layers", "stag")):
        said = run(photos, f"{tmp_path / 'D'}/", *options, code=2)
        assert "error: " in said
        assert not (tmp_path / "D").exists()
    run(tmp_path / "nowhere", f"{tmp_path / 'D'}/", "--backbone", "seedling", code=2)
    run(photos, f"{tmp_path / 'no' / 'D'}/", "--backbone", "seedling", code=2)
    assert not list(tmp_path.iterdir())


def test_another_network_changes_nothing(own, run):
    before = look_at(own / "parts")
    said = run(own / "photos", own / "parts", "--backbone", "resnet18", code=2)
    assert "asked for 'resnet18'" in said
    assert look_at(own / "parts") == before


def test_the_wrong_folder_changes_nothing(own, run):
    """Other images, some in the range of every part, and more than the last one has room for."""
    wrong = own / "wrong"
    places = [f"{s}/{c}/{i:03}-x.jpg" for s in PER_CLASS for c in CLASSES for i in range(16)]
    places += [f"zebra/{i:03}.jpg" for i in range(40)]
    for shade, place in enumerate(places):
        (wrong / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (shade, 99, 0)).save(wrong / place)
    before = look_at(own / "parts")
    said = run(wrong, own / "parts", code=2)
    assert "--prune" in said
    assert look_at(own / "parts") == before
    assert FeatureCache(own / "parts").n_rows == COUNT
    assert f"0 computed, {COUNT} reused" in run(own / "photos", own / "parts")


def test_a_folder_that_holds_other_things_is_left_alone(own, run):
    before = {p.relative_to(own) for p in (own / "photos").rglob("*")}
    run(own / "photos", f"{own / 'photos'}/", "--backbone", "seedling", code=2)
    assert {p.relative_to(own) for p in (own / "photos").rglob("*")} == before


def test_images_that_went_take_their_part_along(own, run):
    gone = FeatureCache(own / "parts" / "part-00000.h5").paths
    for path in gone:
        (own / "photos" / path).unlink()
    before = look_at(own / "parts")
    assert "--prune" in run(own / "photos", own / "parts", code=2)
    assert look_at(own / "parts") == before
    said = run(own / "photos", own / "parts", "--prune")
    assert f"{COUNT - len(gone)} rows; 0 computed" in said
    assert "part-00000.h5 is no part any more" in said
    assert "''" not in said  # the range is told by its other end
    assert not set(gone) & set(FeatureCache(own / "parts").paths)
