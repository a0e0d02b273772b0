"""Several caches on the command line, each by its own cut of the shipped backbone."""

import json

import pytest

from featurize import run

HEADS = ("--heads", "lda,ncm")


@pytest.fixture(scope="module")
def caches(tmp_path_factory, pictured):
    """``c.h5`` of all pictured digits; ``deep.h5`` of all but the 9s, of other layers and pools."""
    home = tmp_path_factory.mktemp("deep")
    run(
        pictured.images,
        home / "deep.h5",
        backbone="seedling",
        layers="stage3:max,stage4:max",
        device="cpu",
        exclude=["9/*"],
    )
    return pictured.cache, home / "deep.h5"


@pytest.mark.long
def test_compare_json_says_which_cache(run_cli, call, caches):
    done = run_cli("compare", *caches, *HEADS, "--layers", "last,c:last+deep:last", "--json")
    assert done.returncode == 0, done.stderr
    assert "20 images are left out, not being finished in every cache" in done.stderr
    found = json.loads(done.stdout)
    places = [(r["cache"], r["layer"], r["columns"]) for r in found["records"][:3]]
    assert places == [
        ("c", "stage4", 512),
        ("deep", "stage4@max", 512),
        ("c+deep", "c:stage4+deep:stage4@max", 1024),
    ]
    assert found["caches"] == {"c": str(caches[0]), "deep": str(caches[1])}
    assert found["best"] in found["records"]
    _, out, _ = call("compare", caches[1], *HEADS, "--layers", "stage4@max", "--json")
    (alone, _) = json.loads(out)["records"]
    (same,) = [r for r in found["records"] if (r["cache"], r["head"]) == ("deep", "lda")]
    assert not {"cache", "columns", "row_bytes", "gmacs"} & alone.keys()
    differing = {"cache", "columns", "row_bytes", "gmacs", "distinguishable", "worse", "seconds"}
    assert {k: v for k, v in same.items() if k not in differing} == {
        k: v for k, v in alone.items() if k not in differing
    }


@pytest.mark.parametrize("width", [80, 100])
def test_compare_prints_cache_and_cost(call, caches, width):
    status, out, err = call("compare", *caches, *HEADS, columns=width)
    assert (status, err.count("left out")) == (0, 1)
    lines = out.splitlines()
    headings = "head cache layer val test 95 % CI columns GMAC"
    assert headings.split() in [line.split() for line in lines]
    rows = [line.split() for line in lines if line[4:7] in ("lda", "ncm")]
    assert len(rows) == 16
    assert "lda deep stage3@max" in " ".join(" ".join(row) for row in rows)
    assert sum("last of each" in line for line in lines) == 2
    assert "16 heads from 2 caches in " in out
    assert max(map(len, lines)) <= width


def test_few_shots_print_the_cache(call, caches):
    options = ("--heads", "ncm", "--layers", "stage4,stage4:max", "--shots", "2", "--repeats", "2")
    status, out, _ = call("compare", *caches, *options)
    assert status == 0
    assert ["head", "cache", "layer", "2"] in [line.split() for line in out.splitlines()]
    assert "4 heads from 2 caches in " in out
    assert " of c, 2 images" in out or " of deep, 2 images" in out


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "--layers", "d:last"), "there is no cache 'd'; there are c, deep"),
        (("fit", "-o", "x.head"), "fit takes one cache"),
    ],
)
def test_wrong_calls_end_with_2(run_cli, caches, tmp_path, words, message):
    done = run_cli(words[0], *caches, *words[1:], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_report_covers_all_caches(call, caches, pictured, tmp_path):
    pytest.importorskip("bokeh")
    page = tmp_path / "r.html"
    options = ("-o", page, "--images", pictured.images, "--json")
    status, out, _ = call("report", *caches, *HEADS, *options)
    assert status == 0
    found = json.loads(out)
    assert {record["cache"] for record in found["records"]} == {"c", "deep", "c+deep"}
    assert "c.h5, deep.h5" in page.read_text()
