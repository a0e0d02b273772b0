"""Images drawn once, and each kind of source that holds them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from . import making

COUNT = 24
SEEDLING = ("--backbone", "seedling", "--device", "cpu")
LOCAL_KINDS = ("folder", "tar", "shards", "zip", "parquet", "saved", "csv", "jsonl")
# These need neither pyarrow nor fsspec.
PLAIN_KINDS = ("folder", "tar", "shards", "zip", "csv", "jsonl")


@pytest.fixture(scope="session")
def images() -> dict[str, bytes]:
    return making.draw_images(COUNT)


@pytest.fixture(scope="session")
def pack(images) -> Callable[[Path], dict[str, Path]]:
    """Write the same images as each kind of source below a folder."""

    def pack(home: Path) -> dict[str, Path]:
        photos = making.write_folder(home / "photos", images)
        return {
            "folder": photos,
            "tar": making.write_tar(home / "all.tar", images),
            "shards": making.write_shards(home / "shards", images, 10),
            "zip": making.write_zip(home / "all.zip", images),
            "parquet": making.write_parquet(home / "all.parquet", images),
            "saved": making.write_saved(home / "saved", images),
            "csv": making.write_csv(home / "list.csv", [f"photos/{name}" for name in images]),
            "jsonl": making.write_jsonl(home / "list.jsonl", [str(photos / n) for n in images]),
        }

    return pack


@pytest.fixture(scope="session")
def kinds(pack, tmp_path_factory) -> dict[str, Path]:
    """Sources by kind; nobody writes to them."""
    return pack(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="session")
def run(command) -> Callable[..., SimpleNamespace]:
    """Call ``featurize run SOURCE -o CACHE --json``; what it counted, and what it said."""

    def run(source: object, cache: Path, *options: object, code: int = 0, **how: Any):
        fresh = () if cache.exists() or "--backbone" in options else SEEDLING
        line = ("run", source, "-o", cache, "--json", "--engine", "eager", *fresh, *options)
        done = command("featurize", *line, **how)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        found = json.loads(done.stdout) if done.stdout else {}
        return SimpleNamespace(**found, said=done.stderr, out=done.stdout)

    return run


@pytest.fixture(scope="session")
def made(kinds, run, tmp_path_factory) -> dict[str, Path]:
    """A cache of each kind, by the command; nobody writes to them."""
    home = tmp_path_factory.mktemp("made")
    for kind, source in kinds.items():
        done = run(source, home / f"{kind}.h5")
        assert (done.rows, done.computed, done.failed) == (COUNT, COUNT, 0), kind
    return {kind: home / f"{kind}.h5" for kind in kinds}


@pytest.fixture(scope="session")
def truth(made) -> dict:
    """What the folder's cache has of each content."""
    return making.read_features(made["folder"])


@pytest.fixture(scope="session")
def poison(tmp_path_factory) -> Callable[..., dict[str, str]]:
    """Make an environment in which importing a package ends the process."""

    def poison(*names: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("poison")
        for name in names:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(
                "import os, sys\n"
                f"print('POISON {name}', file=sys.stderr, flush=True)\nos._exit(99)\n"
            )
        others = os.environ.get("PYTHONPATH", "")
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), others]))}

    return poison


@pytest.fixture(scope="session")
def toy():
    """A network of microseconds, for what is about rows and not about features."""
    import torch

    from featurize import Backbone

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU())
    recipe = {"resize": 16, "crop": 16, "interpolation": "bilinear", "decode": "exact"}
    return Backbone(network, name="toy", preprocess={**recipe, "mean": [0.5] * 3, "std": [0.5] * 3})


class ToyRun:
    """Runs with the toy in this process; `said` is what the last one said."""

    def __init__(self, toy: Any) -> None:
        self.said: list[str] = []
        self._toy = toy

    def __call__(self, source: object, cache: Path, **options: Any) -> Any:
        import featurize

        self.said = []
        line = {"backbone": self._toy, "engine": "eager", "say": self.said.append, **options}
        if not cache.exists():
            line["layers"] = "0"
        return featurize.run(str(source), cache, **line)


@pytest.fixture
def toy_run(toy) -> ToyRun:
    return ToyRun(toy)
