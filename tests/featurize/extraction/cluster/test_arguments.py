"""What `--cluster` may be, and what is said where it is not."""

import subprocess
import sys

import pytest

from featurize.errors import CallError
from featurize.extraction.cluster.arguments import (
    ActorPlan,
    ClusterAddress,
    parse_address,
    plan_actors,
)

HIDE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, *_):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")

sys.meta_path.insert(0, Hidden)
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", ClusterAddress("local")),
        ("auto", ClusterAddress("auto")),
        ("head:6379", ClusterAddress("head:6379", "head", 6379)),
        ("10.0.0.1:1", ClusterAddress("10.0.0.1:1", "10.0.0.1", 1)),
        ("[::1]:6379", ClusterAddress("[::1]:6379", "::1", 6379)),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "Local", "head", "head:", ":6379", "head:0", "head:70000", "a b:1", "http://h:1"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(CallError, match=r"local .*, auto .* or HOST:PORT"):
        parse_address(text)


def test_ray_client_is_refused_with_what_to_do():
    with pytest.raises(CallError, match="--cluster auto"):
        parse_address("ray://head:10001")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--actors", 2], "--cluster local"),
        (["--cluster", "nowhere"], "HOST:PORT"),
        (["--cluster", "127.0.0.1:9"], "no cluster answers at 127.0.0.1:9"),
        (["--cluster", "local", "--device", "cuda:1"], "gives out its GPUs itself"),
    ],
)
def test_wrong_calls_write_nothing(options, said, cli, draw, tmp_path):
    folder = draw(tmp_path / "images", ["1.png"])
    line = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", *options)
    done = cli(*line)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "c.h5").exists()


def test_without_ray_its_command_is_told(draw, tmp_path):
    folder = draw(tmp_path / "images", ["1.png"])
    code = f"{HIDE}\nfrom featurize import run\nrun({str(folder)!r}, 'c.h5', cluster='local')"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "pip install 'headgraft[cluster]'" in done.stderr
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    ("nodes", "n_actors", "device", "expected"),
    [
        ([{"CPU": 2}], None, "auto", ActorPlan(1, 2, "cpu")),
        ([{"CPU": 2}], 2, "auto", ActorPlan(2, 1, "cpu")),
        ([{"CPU": 8}, {"CPU": 4}], None, "auto", ActorPlan(2, 4, "cpu")),
        ([{"CPU": 8}, {}], None, "cpu", ActorPlan(1, 8, "cpu")),
        ([{"CPU": 64, "GPU": 8}], None, "auto", ActorPlan(8, 8, "cuda")),
        ([{"CPU": 64, "GPU": 8}], 2, "cuda", ActorPlan(2, 32, "cuda")),
        ([{"CPU": 64, "GPU": 8}], None, "cpu", ActorPlan(1, 64, "cpu")),
        ([{"CPU": 16}, {"CPU": 8, "GPU": 1}], None, "auto", ActorPlan(1, 8, "cuda")),
    ],
)
def test_workers_share_the_machines(nodes, n_actors, device, expected):
    assert plan_actors(nodes, n_actors, device) == expected


def test_too_many_workers_are_refused():
    with pytest.raises(CallError, match="no room for 3 workers: it has 2 cores"):
        plan_actors([{"CPU": 2}], 3, "auto")
    with pytest.raises(CallError, match="has no GPU"):
        plan_actors([{"CPU": 2}], None, "cuda")
