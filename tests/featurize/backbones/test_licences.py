"""Licences of weights: shown before they are used, kept with what was made by them."""

import json

import pytest

from featurize import FeatureCache
from featurize.backbones.licences import classify_licence


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("apache-2.0", "permissive"),
        ("Apache-2.0", "permissive"),
        ("mit", "permissive"),
        ("bsd-3-clause", "permissive"),
        ("cc-by-nc-4.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("FAIR-nc", "non-commercial"),
        ("dinov3-license", "restricted"),
        ("nvidia-open", "restricted"),
        ("mitsubishi-licence", "restricted"),
        ("unknown", "unknown"),
        ("", "unknown"),
    ],
)
def test_kinds(licence, kind):
    assert classify_licence(licence) == kind


def test_every_licence_of_timm_is_told_apart(timm):
    """No licence that forbids anything passes for a permissive one."""
    kinds: dict[str, str] = {}
    for name in timm.list_pretrained():
        licence = timm.get_pretrained_cfg(name).license or "unknown"
        kinds[licence] = classify_licence(licence)
    permissive = {licence for licence, kind in kinds.items() if kind == "permissive"}
    allowed = ("apache-2.0", "mit", "bsd", "cc-by-4.0")
    assert permissive
    assert all(licence.lower().startswith(allowed) for licence in permissive), permissive
    non_commercial = {licence for licence, kind in kinds.items() if kind == "non-commercial"}
    assert {"cc-by-nc-4.0"} <= non_commercial
    assert not {licence for licence in kinds if "nc" in licence.lower().split("-")} - non_commercial


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("apache-2.0", []),
        ("cc-by-nc-4.0", ["warning", "cc-by-nc-4.0", "commercial"]),
        ("dinov3-license", ["warning", "dinov3-license"]),
        (None, ["warning", "unknown"]),
    ],
)
def test_a_run_shows_the_licence_and_keeps_it(
    licence, words, make_harsh, write_folder, pictures, tmp_path, cli
):
    folder = write_folder(tmp_path / "folder", make_harsh("test_vit"), license=licence)
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", folder)
    done = cli(*line)
    assert done.exit_code == 0
    for word in words:
        assert word in done.stderr
    assert (licence or "unknown") in done.stderr
    assert ("warning" in done.stderr) == bool(words)
    kept = licence or "unknown"
    assert FeatureCache(tmp_path / "c.h5").extractor.environment["licence"] == kept


def test_the_licence_is_in_info(make_harsh, write_folder, pictures, tmp_path, cli):
    folder = write_folder(tmp_path / "folder", make_harsh("test_vit"), license="cc-by-nc-4.0")
    cli("run", pictures, "-o", tmp_path / "c.h5", "--backbone", folder)
    assert json.loads(cli("info", tmp_path / "c.h5", "--json").stdout)["licence"] == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0" in cli("info", tmp_path / "c.h5").stdout


def test_a_licence_does_not_change_the_fingerprint(
    make_harsh, write_folder, pictures, tmp_path, cli
):
    network = make_harsh("test_vit")
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--json", "--backbone")
    cli(*line, write_folder(tmp_path / "one", network, license="apache-2.0"))
    done = cli(*line, write_folder(tmp_path / "two", network, license="mit"))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == 0
