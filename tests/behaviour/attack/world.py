"""A small collection of images, the caches it can come from, and what is right for all of them."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from featurize import FeatureCache

from .starting import Ended, Starter

LAYERS = "stem:max,stage4"
NETWORK = ("--backbone", "seedling", "--device", "cpu")
BROKEN = "b/broken.png"
ONE_DAY = 86_400
MARKED, FAILED = 1, 2  # docs/cache-format.md, C7


def draw(path: Path, seed: int, side: int = 16) -> None:
    """A picture of noise, as old as a day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
    age(path)


def age(path: Path, days: int = 1) -> None:
    then = path.stat().st_mtime - days * ONE_DAY
    os.utime(path, (then, then))


def classes(folder: Path, each: int = 30, names: str = "abc", side: int = 16) -> Path:
    """A folder with as many classes of images; every class has a colour that can be learnt."""
    for k, name in enumerate(names):
        for i in range(each):
            rng = np.random.default_rng([k, i])
            noise = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            noise[..., k % 3] += 100
            path = folder / name / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
            age(path)
    return folder


class World:
    """Images as they are now, four earlier states of them, and every content's right features.

    Whatever a cache begins as, completing it for the images of now has one right end.

    Attributes
    ----------
    now : Path
        The images.
    starts : dict of str to bytes
        Caches, by what is left to do on each; ``create`` is none at all.
    sound : dict of bytes to dict of str to array
        Features by content and layer.
    """

    def __init__(self, start: Starter, home: Path, images: int = 60) -> None:
        self.start, self.home, self.now = start, home, home / "now"
        for k in range(images):
            draw(self.now / "ab"[k % 2] / f"{k:03}.png", k)
        shutil.copy2(self.now / "a" / "000.png", self.now / "b" / "twin.png")
        (self.now / BROKEN).write_bytes(b"no image")
        age(self.now / BROKEN)
        earlier = {name: self._copied(name) for name in ("images", "prune", "change")}
        for path in sorted((earlier["images"] / "a").iterdir())[::3]:
            path.unlink()
        for k in range(images // 3):
            draw(earlier["prune"] / "gone" / f"{k:03}.png", 1000 + k)
        for k, path in enumerate(sorted((earlier["change"] / "a").iterdir())[::2]):
            draw(path, 2000 + k)
            age(path)
        self.sound: dict[bytes, dict[str, np.ndarray]] = {}
        self.starts = {"create": b""}
        for name, folder in earlier.items():
            self.starts[name] = self._made(folder, name)
            self._learn(home / f"{name}.h5")
        self.starts["layer"] = self._made(self.now, "layer", "stage4")
        self._made(self.now, "truth")
        self._learn(home / "truth.h5")
        self.right = self.digests(home / "truth.h5")
        self.earlier = [
            self.digests(home / f"{name}.h5") for name in self.starts if name != "create"
        ]

    def _copied(self, name: str) -> Path:
        return Path(shutil.copytree(self.now, self.home / name, copy_function=shutil.copy2))

    def _made(self, folder: Path, name: str, layers: str = LAYERS) -> bytes:
        path = self.home / f"{name}.h5"
        done = self.start("featurize", "run", folder, "-o", path, *NETWORK, "--layers", layers)
        assert done.code == 0, done.said
        return path.read_bytes()

    def _learn(self, path: Path) -> None:
        cache = FeatureCache(path)
        digests = cache.column("sha256")
        for row in np.flatnonzero(cache.status == MARKED).tolist():
            found = {name: cache.features(name, [row])[0] for name in cache.layers}
            self.sound[digests[row].tobytes()] = found

    @staticmethod
    def digests(path: Path) -> dict[str, bytes]:
        """The marked rows of a cache: what each was computed from."""
        cache = FeatureCache(path)
        rows, digests = np.flatnonzero(cache.status == MARKED), cache.column("sha256")
        return {cache.paths[row]: digests[row].tobytes() for row in rows.tolist()}

    def lay(self, folder: Path, name: str) -> Path:
        """A folder that holds a cache at its start; where the cache is."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "c.h5"
        if self.starts[name]:
            path.write_bytes(self.starts[name])
        return path

    def words(self, path: Path) -> tuple[object, ...]:
        """The arguments that complete any of the caches."""
        return ("run", self.now, "-o", path, *NETWORK, "--layers", LAYERS, "--prune")

    def check(self, folder: Path) -> dict[str, dict[str, bytes]]:
        """Every cache that stands in a folder is sound, every marked row right: those, by file."""
        found = {}
        for name in ("c.h5", "c.h5.part"):
            if (folder / name).exists():
                cache = FeatureCache(folder / name)
                assert cache.verify() == [], name
                found[name] = self.digests(folder / name)
                self._check_rows(cache, found[name])
        return found

    def _check_rows(self, cache: FeatureCache, marked: dict[str, bytes]) -> None:
        for path, digest in marked.items():
            known = (self.right.get(path), *(one.get(path) for one in self.earlier))
            assert digest in known, f"{path} is of another image"
        rows = [cache.row_of[path] for path in marked]
        for layer in cache.layers if rows else ():
            right = np.stack([self.sound[digest][layer] for digest in marked.values()])
            np.testing.assert_allclose(cache.features(layer, rows), right, rtol=0, atol=1e-5)

    def finish(self, folder: Path) -> Ended:
        """Run again, undisturbed: the end is the right one, and nothing else lies about."""
        done = self.start("featurize", *self.words(folder / "c.h5"))
        assert done.code == 0, done.said
        assert self.check(folder) == {"c.h5": self.right}
        assert list(FeatureCache(folder / "c.h5").layers) == LAYERS.replace(":", "@").split(",")
        assert set(FeatureCache(folder / "c.h5").failures) == {BROKEN}
        left = {path.name for path in folder.iterdir()}
        assert left <= {"c.h5", "c.h5.lock"}, f"left over: {left}"
        return done
