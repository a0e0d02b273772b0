"""The report as a file: what is in it, what is escaped, what it refuses."""

import base64
import csv
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classify.errors import CallError, OutputError
from classify.experiments.compare import Comparison
from classify.experiments.compare import compare_classes as compare
from featurize.cache.reader import FeatureCache

pytest.importorskip("bokeh")
from classify.report.charts.base import clean_label
from classify.report.charts.confusion import MAX_MATRIX_CLASSES, chart_confusion
from classify.report.charts.depth import chart_depth
from classify.report.projection import MAX_POINTS, Projector
from classify.report.thumbnails import GALLERY_PIXELS, make_thumbnail
from classify.report.write import check_report_path, write_report

HOSTILE = "a/<img src=x onerror=alert(1)>.png"
LABELS = ["</script><b>'\"", "<!--&amp;", "$$x$$"]
N = 60


class Elements(HTMLParser):
    """Every tag, attribute and text of a page, as a browser's parser would split it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text, self._inside = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            about, before = self.scripts[-1]
            self.scripts[-1] = about, before + data
        else:
            self.text += data

    def json(self, id: str) -> Any:
        return next(json.loads(text) for about, text in self.scripts if about.get("id") == id)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_cache) -> tuple[FeatureCache, Path, Comparison]:
    """Three classes with hostile names, and an image with one; every fourth is for the test."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    paths = sorted([HOSTILE, *(f"{i:03}.png" for i in range(1, N))])
    y = np.arange(N) % 3
    deep = (rng.normal(size=(N, 6)) + 2 * np.eye(6)[y]).astype(np.float32)
    shallow = rng.normal(size=(N, 4)).astype(np.float32)
    cache = make_cache(folder / "c.h5", {"shallow": shallow, "deep": deep}, paths)
    (folder / "images" / "a").mkdir(parents=True)
    for i, path in enumerate(paths):
        Image.fromarray(np.full((9, 12), 4 * i, np.uint8)).save(folder / "images" / path)
    with open(folder / "kind.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split"])
        for i, path in enumerate(paths):
            table.writerow([path, LABELS[y[i]], "test" if i % 4 == 0 else "train"])
    return cache, folder / "images", compare(cache, folder / "kind.csv", heads="ridge,ncm", jobs=1)


@pytest.fixture(scope="module")
def page(world, tmp_path_factory) -> Elements:
    cache, images, found = world
    path = tmp_path_factory.mktemp("page") / "r.html"
    options = {
        "command": "classify <x> s3://key:secret@bucket/y",
        "sources": {"kind": "k.csv"},
        "seed": 7,
    }
    write_report(path, cache, found, images=images, **options)
    return Elements(path.read_text(encoding="utf-8"))


@pytest.mark.long
def test_answer_and_provenance_are_said(world, page):
    cache, _, found = world
    best = found.best
    text = " ".join(page.text.replace("\u202f", " ").split())
    low, high = best.accuracy_ci
    assert f"right on {100 * best.accuracy:.1f} % of {best.n_test} test images" in text
    assert f"interval {100 * low:.1f} to {100 * high:.1f} %" in text
    printed = cache.layers["deep"].fingerprint
    assert "secret" not in text
    for fact in (
        "classify <x> s3://bucket/y",
        "k.csv",
        "7 (held-out",
        cache.extractor.weights_sha256,
        printed,
    ):
        assert fact in text
    for record in found.records:
        assert record.head in text


def test_how_much_of_each_class_is_found_is_listed_the_least_first(world, page):
    _, _, found = world
    text = " ".join(page.text.replace("\u202f", " ").split())
    listed = text[text.index("Recall by class") :]
    at = 0
    for label, it in found.best.recall.items():
        low, high = it["ci"]
        line = f"{label}{100 * it['value']:.1f} %{100 * low:.1f} to {100 * high:.1f} %{it['n']}"
        at = listed.index(line, at)


def test_majority_class_is_a_row_of_its_own(page):
    text = " ".join(page.text.replace("\u202f", " ").split())
    assert "majority classbaseline" in text
    assert re.search(r"Baseline33\.3 %always .*, one of the largest classes", text)


def test_only_our_scripts_may_run_and_nothing_is_fetched(page):
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    assert "unsafe-eval" not in policy
    running = [text for about, text in page.scripts if "type" not in about]
    assert len(running) == 2
    for script in running:
        code = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{code}'" in policy
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#"))


def test_hostile_names_are_text_everywhere(page):
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    for label in LABELS:
        assert label in page.text
    points = json.dumps(page.json("charts")["task-1-map"])
    assert HOSTILE in points.replace('\\"', '"')
    raw = next(text for about, text in page.scripts if about.get("id") == "charts")
    assert "<" not in raw


def test_pictures_are_small_and_each_point_has_one(world, page):
    cache, images, _ = world
    assert len(page.json("pictures")) == N
    picture = make_thumbnail((images / cache.paths[0]).read_bytes(), GALLERY_PIXELS)
    assert picture.side == 9  # never enlarged
    assert len(picture.url) < 1000


def test_without_images_it_says_how_to_get_them(world, tmp_path):
    cache, _, found = world
    write_report(tmp_path / "r.html", cache, found)
    bare = Elements((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not bare.all("img")
    assert bare.json("pictures") == {}
    assert "--images" in bare.text


def test_images_that_cannot_be_opened_leave_a_placeholder(world, tmp_path):
    cache, _, found = world
    (tmp_path / "empty").mkdir()
    write_report(tmp_path / "r.html", cache, found, images=tmp_path / "empty")
    page = Elements((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.all("img")
    assert "cannot be opened" in page.text


def test_without_test_images(world, tmp_path, make_table):
    cache, _, _ = world
    rows = [(f'"{path}"', "ab"[i % 2]) for i, path in enumerate(cache.paths)]
    table = make_table(tmp_path / "t.csv", "path,label", rows)
    found = compare(cache, table, heads="ncm", layers="deep", test_size=0, jobs=1)
    write_report(tmp_path / "r.html", cache, found)
    text = Elements((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "There are no test images." in text
    assert "no depth to show" in text


def test_small_classes_are_listed(world, tmp_path, make_table):
    cache, _, _ = world
    rows = [
        (f'"{path}"', "rare" if i in (5, 6, 7) else "ab"[i % 2])
        for i, path in enumerate(cache.paths)
    ]
    table = make_table(tmp_path / "t.csv", "path,label", rows)
    found = compare(cache, table, heads="ncm", layers="deep", jobs=1)
    write_report(tmp_path / "r.html", cache, found)
    text = " ".join(Elements((tmp_path / "r.html").read_text(encoding="utf-8")).text.split())
    assert "1 class with too few images" in text
    assert re.search(r"rare[23]fewer than 10 training images", text)  # three cells of a row


def test_several_tasks_have_contents_and_sections(world, tmp_path, make_table):
    cache, _, found = world
    rows = [(f'"{path}"', "ab"[i % 2]) for i, path in enumerate(cache.paths)]
    other = compare(
        cache, make_table(tmp_path / "two.csv", "path,label", rows), heads="ncm", jobs=1
    )
    both = replace(
        found,
        records=found.records + other.records,
        results=found.results + other.results,
        tasks=found.tasks + other.tasks,
        best_per_task=found.best_per_task | other.best_per_task,
    )
    write_report(tmp_path / "r.html", cache, both)
    page = Elements((tmp_path / "r.html").read_text(encoding="utf-8"))
    links = {link["href"] for link in page.all("a")}
    assert {"#task-1", "#task-2", "#provenance"} <= links
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)


def test_an_older_report_is_replaced_and_nothing_else(world, tmp_path):
    cache, _, found = world
    target = tmp_path / "r.html"
    target.write_text("<p>my thesis</p>")
    with pytest.raises(OutputError, match="not a report"):
        write_report(target, cache, found)
    assert target.read_text() == "<p>my thesis</p>"
    target.write_bytes(b"")
    for _ in range(2):
        write_report(target, cache, found)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        check_report_path(tmp_path / "absent" / "r.html")
    with pytest.raises(OutputError, match="it is a folder"):
        check_report_path(tmp_path)
    with pytest.raises(CallError, match="--images"):
        check_report_path(tmp_path / "r.html", tmp_path / "absent")


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("classify.report.write.find_spec", lambda name: None)
    with pytest.raises(CallError, match=r"pip install 'headgraft\[report\]'"):
        check_report_path(tmp_path / "r.html")


def test_many_classes_show_the_most_confused(world):
    K = 1000
    counts = np.diag(np.full(K, 5))
    counts[7, 900] = 40
    chart = chart_confusion(counts, [f"class {k}" for k in range(K)], "c")
    assert f"the {MAX_MATRIX_CLASSES} of 1,000 classes" in chart.note
    assert "40 of all 40" in chart.note
    assert "class 900" in json.dumps(chart.item)
    assert len(json.dumps(chart.item)) < 200_000


@pytest.mark.long
def test_a_large_map_is_a_sample_and_the_same_for_all_tasks(tmp_path, make_cache):
    n = MAX_POINTS + 200
    features = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    cache = make_cache(tmp_path / "c.h5", {"l": features}, [f"{i:05}.png" for i in range(n)])
    projector = Projector(cache)
    found = projector.project(["l"], np.arange(n))
    assert found.pca.shape == (MAX_POINTS, 2)
    again = projector.project(["l"], np.arange(n))  # kept beside the cache
    assert (again.tsne == found.tsne).all()
    some = projector.project(["l"], np.arange(50))
    assert set(some.rows) == set(range(50))


def test_embeddings_all_alike_are_no_error(tmp_path, make_cache):
    cache = make_cache(tmp_path / "c.h5", {"l": np.ones((30, 3), np.float32)})
    found = Projector(cache).project(["l"], np.arange(30))
    assert (found.pca == 0).all()


def test_joined_layers_stand_apart(world):
    cache, _, found = world
    chart = chart_depth(found.records, tuple(cache.layers), "test", "d")
    assert [key.label for key in chart.keys] == ["ridge", "ncm"]
    text = json.dumps(chart.item, ensure_ascii=False)
    assert text.index('"shallow"') < text.index('"all 2 joined"')


def test_no_name_is_taken_for_a_formula():
    for name in ("$$x$$", r"\(x\)", r"\[x\]"):
        assert not any(mark in clean_label(name) for mark in ("$$", r"\(", r"\["))
    assert clean_label("a\n b") == "a b"
    assert len(clean_label("x" * 99, 20)) == 20
