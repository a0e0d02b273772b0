"""Check a cache against its specification and, where they are at hand, against its images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurize.cache.format import MARKED
from featurize.cache.integrity import compute_checksums, is_unchecked
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache, find_cache_violations
from featurize.cache.writer import CacheWriter
from featurize.errors import CallError, ImageUnreadableError, OutputError
from featurize.extraction.changes import ListingDiff, RetryPolicy
from featurize.extraction.grow import (
    COPY_CHUNK_BYTES,
    copy_unchanged,
    open_partial,
    partial_path,
    replace_original,
)
from featurize.extraction.options import Options, resolve_options
from featurize.extraction.setup import ExtractionSetup
from featurize.files import hash_bytes
from featurize.images import decoding, reading, reasons
from featurize.sources import folder
from featurize.sources.folder import ImageListing

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

SAMPLE_SIZE = 32
# Another machine's arithmetic, float16 storage, reduced precision: (relative to the row's norm).
RELATIVE_TOLERANCE = {"<f4": 1e-3, "<f2": 5e-3}
LOW_PRECISION_TOLERANCE = 5e-2


def verify(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    backbone: "Backbone | None" = None,
    weights: str | None = None,
    fill: bool = False,
    seed: int = 0,
) -> list[str]:
    """Find what is wrong with a cache.

    Parameters
    ----------
    path : path
        The cache.
    folder : path, optional
        Its images. With them every marked row is hashed again, and a random sample embedded.
    backbone : Backbone, optional
        For a cache that was made with a network of your own.
    weights : str, optional
        Where the weights file is now.
    fill : bool
        Where nothing is wrong, make checksums for rows that have none, of their numbers as they
        stand.

    Returns
    -------
    list of str
        Problems; empty where there are none.

    Raises
    ------
    FileNotFoundError
        If there is no such cache.
    CallError, BackboneError, FingerprintMismatch
        If the backbone cannot be had again, or is another.
    CacheBusy, DiskFull, OutputError
        If checksums cannot be written.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist; make it with `featurize run`")
    found = find_cache_violations(path)
    if not found and folder is not None:
        found = _check_against_images(path, folder, backbone, weights, seed)
    if fill and not found:
        _add_checksums(Path(path))
    return found


def _check_against_images(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    backbone: "Backbone | None",
    weights: str | None,
    seed: int,
) -> list[str]:
    found, cache, root = [], FeatureCache(path), Path(folder)
    if not root.is_dir():
        raise CallError(f"{root} is no folder; give the one that holds the images")
    sha256 = cache.column("sha256")
    sound = []
    for row in np.flatnonzero(cache.status == MARKED).tolist():
        problem = _find_row_problem(cache.paths[row], sha256[row].tobytes(), root)
        if problem:
            found.append(problem)
        else:
            sound.append(row)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(np.array(sound, np.intp))[:SAMPLE_SIZE])
    return found + _compare_with_fresh_pass(cache, sample, root, backbone, weights)


def _find_row_problem(path: str, recorded: bytes, root: Path) -> str:
    try:
        digest = hash_bytes(reading.read_image_file(folder.join_path(root, path)).data)
    except ImageUnreadableError as error:
        if error.reason == reasons.VANISHED:
            return f"{path} is in the cache but not in {root}"
        return str(error)
    if digest != recorded:
        return f"{path} has other bytes than the cache recorded; `featurize run` recomputes it"
    return ""


def _compare_with_fresh_pass(
    cache: FeatureCache,
    rows: np.ndarray,
    root: Path,
    backbone: "Backbone | None",
    weights: str | None,
) -> list[str]:
    if not len(rows):
        return []
    wanted = resolve_options(Options(weights=weights), cache, backbone.name if backbone else None)
    loader = ExtractionSetup(wanted, backbone, cache)
    infos = list(cache.layers.values())
    engine = loader.make_engine_selector(infos).open_first()
    preprocess = cache.extractor.preprocess
    places = [folder.join_path(root, cache.paths[row]) for row in rows]
    pixels = np.stack(
        [decoding.decode_image(reading.read_image_file(place).data, preprocess) for place in places]
    )
    found = []
    for info, fresh in zip(infos, engine.run(pixels), strict=True):
        stored = cache.features(info.name, rows).astype(np.float32)
        norm = np.linalg.norm(fresh, axis=1)
        error = np.linalg.norm(stored - fresh, axis=1) / np.maximum(norm, 1e-12)
        low = cache.extractor.precision != "float32"
        limit = LOW_PRECISION_TOLERANCE if low else RELATIVE_TOLERANCE[info.dtype]
        for k in np.flatnonzero(error > limit):
            found.append(
                f"features/{info.name} of {cache.paths[rows[k]]} differ from a fresh pass "
                f"by {error[k]:.1e} of their norm"
            )
    return found


def _add_checksums(path: Path) -> None:
    """Give every finished row a checksum of its numbers as they stand, where it has none.

    A cache of format 1.0 has no place for them: it is written anew beside the old one.

    Raises
    ------
    CacheBusyError, DiskFullError, OutputError
    FeaturizeError
        If a growth of this cache was begun and not finished.
    """
    with WriteLock(path) as lock:
        lock.require_held()
        cache = FeatureCache(path)
        if not cache.unchecked_rows:
            return
        if cache.has_checksums:
            with CacheWriter(path) as into:
                _write_missing_checksums(into)
            return
        part = partial_path(path)
        if part.exists():
            raise OutputError(
                f"{part} is left from a run that was adding to the cache; run that again to "
                "finish it, or remove it"
            )
        stat = cache.column("size"), cache.column("mtime_ns")
        listing = ImageListing(
            Path(cache.root),
            cache.paths,
            *stat,
            skipped=[],
            include=tuple(cache.include),
            exclude=tuple(cache.exclude),
        )
        open_partial(cache, list(cache.layers.values()), listing)
        every = np.arange(cache.n_rows)
        same = ListingDiff(every, np.ones(len(every), bool), np.zeros(len(every), bool), 0)
        with CacheWriter(part) as into:
            copy_unchanged(cache, into, same, listing, RetryPolicy(transient=False))
            _write_missing_checksums(into)
        replace_original(cache)


def _write_missing_checksums(into: CacheWriter) -> None:
    marked = np.flatnonzero(into.status == MARKED)
    for name, info in into.layout.layers.items():
        step = max(1, COPY_CHUNK_BYTES // (4 * info.dim))
        for start in range(0, len(marked), step):
            rows = marked[start : start + step]
            sha256, stored = (
                into.read_rows("images/sha256", rows),
                into.read_rows(f"checksums/{name}", rows),
            )
            missing = is_unchecked(stored, sha256)
            rows, sha256 = rows[missing], sha256[missing]
            sums = compute_checksums(sha256, into.read_rows(f"features/{name}", rows))
            into.write_checksums(rows, name, sums)
