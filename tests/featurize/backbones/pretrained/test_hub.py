"""The hub: its cache first, one download, a commit kept; and what is said where that fails.

The cache is a real one on the disk, and the hub a server on this machine.
"""

import json
import subprocess
import sys
import time

import pytest

from featurize import FeatureCache, load_backbone

NOWHERE = "http://127.0.0.1:9"
COMMITS = ("a1" * 20, "b2" * 20)


def count(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["computed"], found["reused"]


@pytest.mark.long
def test_a_cache_of_the_hub_is_used_without_a_connection(
    featurize, fill_hub_cache, hub, vit, pictures, tmp_path
):
    fill_hub_cache(tmp_path / "hf", "me/vit", COMMITS[0], vit)
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone")
    done = featurize(*line, "hf-hub:me/vit", "--json", HF_ENDPOINT=hub.address)
    assert count(done) == (3, 0)
    assert hub.requests == []
    # A name that is not there does ask: the test above is no empty one.
    done = featurize(*line, "hf-hub:me/other", HF_ENDPOINT=hub.address)
    assert done.returncode == 2
    assert hub.requests


@pytest.mark.slow
def test_a_download_and_what_is_kept_of_it(featurize, hub, vit, make_harsh, write_folder, pictures,
                                           tmp_path):  # fmt: skip
    """A commit once found is kept: a moved `main` changes nothing unseen, not even a new layer."""
    moved = write_folder(tmp_path / "moved", make_harsh("test_vit", seed=1, num_classes=3))
    hub.models["me/vit"] = {"main": (COMMITS[0], vit)}
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--json")
    name = "hf-hub:me/vit"
    done = featurize(*line, "--backbone", name, HF_ENDPOINT=hub.address)
    assert count(done) == (3, 0)
    extractor = FeatureCache(tmp_path / "c.h5").extractor
    assert extractor.weights_sha256 == load_backbone(str(vit)).weights_sha256
    assert COMMITS[0] in json.dumps(extractor.environment)

    hub.models["me/vit"] = {"main": (COMMITS[1], moved)}
    (tmp_path / "hf" / "hub" / "models--me--vit" / "refs" / "main").unlink(missing_ok=True)
    done = featurize(*line, "--layers", "blocks.1", HF_ENDPOINT=hub.address)
    assert done.returncode == 0, done.stderr
    assert "blocks.1" in FeatureCache(tmp_path / "c.h5").layers
    # On another machine, whose client has never seen the repository:
    hub.models["me/vit"]["old"] = (COMMITS[0], vit)
    more = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "fresh")}
    done = featurize(*line, "--layers", "blocks.2", **more)
    assert done.returncode == 0, done.stderr
    assert "blocks.2" in FeatureCache(tmp_path / "c.h5").layers


@pytest.mark.slow
def test_a_moved_main_does_not_move_a_name_of_timms(
    featurize, fill_hub_cache, vit, make_harsh, write_folder, pictures, tmp_path
):
    """The same of `timm:`: the commit is in the cache."""
    repository = "timm/test_vit.r160_in1k"
    fill_hub_cache(tmp_path / "hf", repository, COMMITS[0], vit)
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--json")
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOWHERE}
    assert count(featurize(*line, "--backbone", "timm:test_vit", **offline)) == (3, 0)
    moved = write_folder(tmp_path / "moved", make_harsh("test_vit", seed=1, num_classes=3))
    fill_hub_cache(tmp_path / "hf", repository, COMMITS[1], moved)
    done = featurize(*line, "--layers", "blocks.1", **offline)
    assert done.returncode == 0, done.stderr
    assert "blocks.1" in FeatureCache(tmp_path / "c.h5").layers


@pytest.mark.slow
def test_a_revision_pins(
    featurize, fill_hub_cache, vit, make_harsh, write_folder, pictures, tmp_path
):
    other = write_folder(tmp_path / "other", make_harsh("test_vit", seed=1, num_classes=3))
    fill_hub_cache(tmp_path / "hf", "me/vit", COMMITS[0], vit)
    fill_hub_cache(tmp_path / "hf", "me/vit", COMMITS[1], other, ref="v2")
    digests = {}
    for revision in ("", f"@{COMMITS[0]}", f"@{COMMITS[1]}", "@v2"):
        out = tmp_path / f"{len(digests)}.h5"
        line = ("run", pictures, "-o", out, "--backbone", f"hf-hub:me/vit{revision}")
        done = featurize(*line, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        digests[revision] = FeatureCache(out).extractor.weights_sha256
    first, second = digests[""], digests["@v2"]
    assert first != second
    assert list(digests.values()) == [first, first, second, second]
    line = ("run", pictures, "-o", tmp_path / "none.h5", "--backbone", "hf-hub:me/vit@v3")
    done = featurize(*line, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "me/vit@v3" in done.stderr
    # A cache of one commit is not continued with another.
    line = ("run", pictures, "-o", tmp_path / "0.h5", "--backbone", "hf-hub:me/vit@v2")
    assert featurize(*line, HF_HUB_OFFLINE="1").returncode == 2


def start_up_seconds(environment: dict[str, str]) -> float:
    """How long python takes to import what any run with timm imports."""
    began = time.monotonic()
    code = "import timm, huggingface_hub, featurize.backbones.load"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return time.monotonic() - began


WAYS_OUT = ("--weights", "--backbone FOLDER", "seedling")


@pytest.mark.parametrize(
    "route",
    [
        "closed",
        *(pytest.param(route, marks=pytest.mark.slow) for route in ("offline", "silent", "broken")),
    ],
)
def test_without_a_route_one_message_within_seconds(
    route, featurize, hub, environ, pictures, tmp_path, timm
):
    hub.status = {"silent": 0, "broken": 503}.get(route, 200)
    more = {"HF_ENDPOINT": NOWHERE if route == "closed" else hub.address}
    more |= {"HF_HUB_OFFLINE": "1"} if route == "offline" else {}
    allowed = 10 + start_up_seconds(environ())
    began = time.monotonic()
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", "timm:test_vit")
    done = featurize(*line, **more)
    assert time.monotonic() - began < allowed
    assert done.returncode == 2
    for way in WAYS_OUT:
        assert way in done.stderr, done.stderr
    assert done.stderr.count("error: ") == 1
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert not (tmp_path / "c.h5").exists()
    assert route != "offline" or not hub.requests


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", ("licence", "hf auth login", "HF_TOKEN")),
        pytest.param(
            *(401, "GatedRepo", ("licence", "hf auth login", "HF_TOKEN")), marks=pytest.mark.slow
        ),
        pytest.param(
            *(401, "RepoNotFound", ("me/vit", "hf auth login", "HF_TOKEN")), marks=pytest.mark.slow
        ),
        (404, "RevisionNotFound", ("me/vit", "v9")),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    status, code, words, featurize, hub, pictures, tmp_path
):
    hub.status, hub.error_code = status, code
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", "hf-hub:me/vit@v9")
    done = featurize(*line, HF_ENDPOINT=hub.address)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr, done.stderr
