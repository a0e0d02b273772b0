"""The licence of a backbone's weights goes with the head that was fitted on its features."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from classify import fit, load_head, save_head
from featurize import load_backbone, run


@pytest.fixture
def cache_under(tmp_path):
    """Make a cache whose backbone's weights are under some licence."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        (folder / label).mkdir(parents=True)
        for k in range(8):
            pixels = rng.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{k}.png")

    def make(licence: str):
        backbone = load_backbone("seedling")
        backbone.facts["licence"] = licence
        run(folder, tmp_path / "c.h5", backbone=backbone)
        return tmp_path / "c.h5"

    return make


@pytest.mark.parametrize(("licence", "warned"), [("mit", False), ("cc-by-nc-4.0", True)])
def test_a_head_keeps_the_licence_and_says_what_it_forbids(cache_under, tmp_path, licence, warned):
    done = fit(cache_under(licence), head="ncm")
    assert any("forbids commercial use" in notice for notice in done.notices) == warned
    save_head(done.head, tmp_path / "h.safetensors")
    assert load_head(tmp_path / "h.safetensors").source.licence == licence
    with safe_open(tmp_path / "h.safetensors", "np") as file:
        assert json.loads(file.metadata()["licence"]) == licence


def test_a_head_without_one_is_written_as_before(make_cache, make_table, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    features = (rng.normal(size=(40, 4)) + y[:, None]).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"a": features})
    table = make_table(tmp_path / "t.csv", "path,label", list(zip(cache.paths, y, strict=True)))
    save_head(fit(cache, table, head="ncm").head, tmp_path / "h.safetensors")
    with safe_open(tmp_path / "h.safetensors", "np") as file:
        assert "licence" not in file.metadata()
    assert load_head(tmp_path / "h.safetensors").source.licence == ""
