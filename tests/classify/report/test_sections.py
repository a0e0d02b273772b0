"""The report of several caches: a leaderboard over all, the rest of the best one's."""

from dataclasses import replace

import numpy as np
import pytest

from classify import compare
from classify.data.sets.cache_set import CacheSet
from featurize.cache.reader import FeatureCache

pytest.importorskip("bokeh")
from classify.report.charts.depth import chart_depth
from classify.report.sections import build_sections
from classify.report.thumbnails import Thumbnails
from classify.report.write import write_report
from classify.strategy.advise import advise_from_comparison
from classify.strategy.advise_best import advise_on_best

N = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory, digits, make_cache, make_table):
    """``noise.h5`` first, which lacks an image; then ``pixels.h5``, which is better."""
    home = tmp_path_factory.mktemp("sections")
    pixels, y = digits[0][:N], digits[1][:N]
    coarse = pixels.reshape(N, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(N, 16)
    noise = np.random.default_rng(0).random((N - 1, 4), np.float32)
    paths = [f"{i:04}.png" for i in range(N)]
    make_cache(home / "noise.h5", {"a": noise, "b": noise + 1}, paths[1:])
    make_cache(home / "pixels.h5", {"coarse": coarse, "fine": pixels})
    groups = np.arange(N) // 3
    rows = list(zip(paths, y, groups, strict=True))
    make_table(home / "digit.csv", "path,label,group", rows)
    make_table(home / "shared.csv", "path,label,group", rows[1:])
    caches = CacheSet([home / "noise.h5", home / "pixels.h5"])
    return home, caches, compare(caches, home / "digit.csv", "lda", "each,joined", jobs=1)


@pytest.mark.long
def test_section_has_a_leaderboard_over_all_and_a_map_of_the_best(world):
    _, caches, found = world
    assert found.best.cache == "pixels"
    (section,) = build_sections(caches, found, Thumbnails(caches, None), {})
    *rows, baseline = section.leaderboard_rows
    assert {row.cache for row in rows} == {"noise", "pixels", "2 caches"}
    assert (baseline.mark, baseline.record.cache) == ("baseline", "–")
    assert section.headline.layer.endswith(" of pixels")
    assert set(section.rank_of) == {record.place for record in found.records}
    # Rows are those of the images that both have: the map, the galleries and their paths agree.
    assert max(section.map_rows) == caches.n_rows - 1
    mistakes = {tile.path for tile in section.galleries[0].groups[0].tiles}
    assert mistakes <= set(caches.paths)


def test_mistakes_are_those_of_the_right_images(world):
    home, caches, found = world
    lines = (home / "digit.csv").read_text().split()[1:]
    label_of = dict(line.split(",")[:2] for line in lines)
    (section,) = build_sections(caches, found, Thumbnails(caches, None), {})
    for group in section.galleries[0].groups:
        (tile,) = group.tiles
        given = next(value for name, value, _ in tile.lines if name == "given")
        assert label_of[tile.path] == given


def test_beside_mistakes_are_training_images_of_both_labels(world):
    home, caches, found = world
    lines = (home / "digit.csv").read_text().split()[1:]
    label_of = dict(line.split(",")[:2] for line in lines)
    (task,) = found.tasks
    part_of = dict(zip((caches.paths[row] for row in task.rows), task.split, strict=True))
    (section,) = build_sections(caches, found, Thumbnails(caches, None), {})
    for group in section.galleries[0].groups:
        values = {name: value.split(" ")[0] for name, value, _ in group.tiles[0].lines}
        assert [tile.lines[0][1] for tile in group.nearest] == [
            values["predicted"],
            values["given"],
        ]
        for tile in group.nearest:
            assert label_of[tile.path] == tile.lines[0][1]
            assert part_of[tile.path] == "train"


def test_depth_chart_has_the_baseline_as_a_line_or_in_words(world):
    _, caches, found = world
    layers = list(caches.layers)
    near = [
        replace(r, validation=0.5 + i / 1000, accuracy=0.5) for i, r in enumerate(found.records)
    ]
    for records, n_dashed in ((found.records, 1), (near, 0)):
        chart = chart_depth(records, layers, "validation", "depth", 0.1)
        glyphs = [r["glyph"]["attributes"] for r in _find(chart.item, "GlyphRenderer")]
        assert sum(glyph.get("line_dash") == [6] for glyph in glyphs) == n_dashed
        assert ("\u2193 majority class" in str(chart.item)) == (not n_dashed)
        assert "majority class" in str(chart.item)


def test_depth_chart_has_a_line_for_each_cache(world):
    _, caches, found = world
    chart = chart_depth(found.records, list(caches.layers), "validation", "depth")
    text = str(chart.item)
    assert all(label in text for label in ("noise", "pixels", "joined caches", "all 2 joined"))
    # One through the layers of each cache; joined layers are single points.
    lines = [r for r in _find(chart.item, "GlyphRenderer") if _glyph_name(r) == "Line"]
    assert len(lines) == 2 + 3


def _find(item, name):
    if isinstance(item, dict):
        if item.get("name") == name and item.get("type") == "object":
            yield item["attributes"]
        for value in item.values():
            yield from _find(value, name)
    elif isinstance(item, list):
        for value in item:
            yield from _find(value, name)


def _glyph_name(renderer):
    return renderer["glyph"]["name"]


def test_advice_is_that_of_the_best_cache(world):
    home, caches, found = world
    table = home / "digit.csv"
    advice, notices = advise_on_best(caches, found, [table])
    assert notices == []
    assert advice["digit"].layer in ("coarse", "fine")
    assert any(str(home / "pixels.h5") in command for command in advice["digit"].commands.values())
    # It is the advice on that cache alone: the same images, in the same groups.
    single = compare(home / "pixels.h5", home / "shared.csv", "lda", "each,joined", jobs=1)
    alone, _ = advise_from_comparison(FeatureCache(home / "pixels.h5"), single, [table])
    assert advice["digit"].depth_profile.to_dict() == alone["shared"].depth_profile.to_dict()


def test_no_advice_on_layers_of_several_caches(world):
    home, caches, _ = world
    found = compare(caches, home / "digit.csv", "lda", "noise:a+pixels:fine", jobs=1)
    advice, (notice,) = advise_on_best(caches, found, [home / "digit.csv"])
    assert advice == {}
    assert "its best head joins layers of several caches" in notice


@pytest.mark.long
def test_page_names_all_caches_and_backbones(world):
    home, _, found = world
    page = home / "r.html"
    write_report(page, [home / "noise.h5", home / "pixels.h5"], found)
    text = page.read_text()
    for words in (
        "Feature cache noise",
        "noise.h5, pixels.h5",
        "Backbone pixels",
        "GMAC",
        "found beside the caches",
    ):
        assert words in text
    single = home / "one.h5"
    single.write_bytes((home / "pixels.h5").read_bytes())
    write_report(page, single, compare(single, home / "digit.csv", "lda", jobs=1))
    assert '<th scope="col" class=""><button type="button">cache' not in page.read_text()
