"""Check a cache against its specification and, if given, against its images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurize.cache.format import MARKED
from featurize.cache.integrity import compute_checksums, is_unchecked
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import read_index
from featurize.cache.parts.opening import describe_missing_part
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheFormatError, ImageUnreadableError, OutputError
from featurize.extraction.completion.changes import (
    COPY_CHUNK_BYTES,
    ListingDiff,
    RetryPolicy,
    copy_unchanged,
)
from featurize.extraction.completion.known_images import reopen_source
from featurize.extraction.completion.partial_cache import (
    open_partial,
    partial_path,
    replace_original,
)
from featurize.extraction.options import Options, resolve_options
from featurize.extraction.setup import ExtractionSetup
from featurize.files import hash_bytes
from featurize.images import decoding, reasons
from featurize.images.reading import ImageFile
from featurize.sources.folder import FolderSource
from featurize.sources.listing import ImageListing, read_images

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

SAMPLE_SIZE = 32
# Relative to the row's norm. Allows for another machine's arithmetic and for float16 storage.
RELATIVE_TOLERANCE = {"<f4": 1e-3, "<f2": 5e-3}
LOW_PRECISION_TOLERANCE = 5e-2


def verify(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    backbone: "Backbone | None" = None,
    weights: str | None = None,
    fill: bool = False,
    seed: int = 0,
) -> list[str]:
    """Check a cache, and optionally add missing checksums.

    Parameters
    ----------
    path : path
        The cache. Each part of a cache of parts is checked for itself, and named where it has a
        problem.
    images : path or URL, optional
        Its images, as for `featurize.run`. If given, the image of every marked row is hashed, and
        a random sample is embedded again.
    backbone : Backbone, optional
        For a cache that was made with a `Backbone` of your own.
    weights : str, optional
        Path of the weights file, if it has moved.
    fill : bool
        If no problem is found, compute checksums of the stored features for rows without one.
    seed : int
        Of the random sample.

    Returns
    -------
    list of str
        One sentence per problem; empty for a sound cache.

    Raises
    ------
    FileNotFoundError
        If there is no such cache.
    CallError, BackboneError, FingerprintMismatchError
        If the backbone cannot be loaded, or differs from the cache's.
    CacheBusyError, DiskFullError, OutputError
        If checksums cannot be written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make it with `featurize run`")
    problems, sound = _check_parts(path) if path.is_dir() else _check_file(path)
    if sound is not None and images is not None:
        problems += _check_against_images(sound, images, backbone, weights, seed)
    if fill and sound is not None and not problems:
        for file in sound.files:
            _add_checksums(file)
    return problems


def _check_file(path: Path) -> tuple[list[str], FeatureCache | None]:
    """List what breaks the specification in a file, layout and rows; open a sound one."""
    try:
        cache = FeatureCache(path)
        problems = cache.verify()
    except CacheFormatError as error:
        return [str(error)], None
    return problems, None if problems else cache


def _check_parts(folder: Path) -> tuple[list[str], FeatureCache | None]:
    """List what breaks the specification in each part, or between them; open those that are sound.

    A problem of one part does not hide those of another.
    """
    try:
        index = read_index(folder)
    except CacheFormatError as error:
        return [str(error)], None
    problems, sound = list[str](), set[str]()
    for part in index.parts:
        found = [describe_missing_part(folder, part.file)]
        if (folder / part.file).exists():
            found, _ = _check_file(folder / part.file)
        problems += [text if part.file in text else f"{part.file}: {text}" for text in found]
        if not found:
            sound.add(part.file)
    try:
        return problems, FeatureCache.open_some(folder, sound) if sound else None
    except CacheFormatError as error:
        return [*problems, str(error)], None


def _check_against_images(
    cache: FeatureCache,
    images: str | os.PathLike[str],
    backbone: "Backbone | None",
    weights: str | None,
    seed: int,
) -> list[str]:
    rows = np.flatnonzero(cache.status == MARKED)
    sha256, paths = cache.column("sha256", rows), cache.paths_of(rows)
    listing = reopen_source(cache, images).locate(paths)
    problems = {}
    for i, image in read_images(listing, range(len(rows))):
        row = int(rows[i])
        problem = _find_row_problem(paths[i], sha256[i], image, images)
        if problem:
            problems[row] = problem
    sound_rows = np.setdiff1d(rows, list(problems))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(sound_rows)[:SAMPLE_SIZE])
    sentences = [problems[row] for row in sorted(problems)]
    return sentences + _compare_with_fresh_pass(cache, sample, listing, backbone, weights)


def _find_row_problem(
    path: str, recorded: np.ndarray, image: ImageFile | ImageUnreadableError, root: object
) -> str:
    if isinstance(image, ImageUnreadableError):
        if image.reason == reasons.VANISHED:
            return f"{path} is in the cache but not in {root}"
        return str(image)
    if hash_bytes(image.data) != recorded.tobytes():
        return f"{path} has other bytes than the cache recorded; `featurize run` recomputes it"
    return ""


def _compare_with_fresh_pass(
    cache: FeatureCache,
    rows: np.ndarray,
    listing: ImageListing,
    backbone: "Backbone | None",
    weights: str | None,
) -> list[str]:
    if not len(rows):
        return []
    resolved = resolve_options(Options(weights=weights), cache, backbone.name if backbone else None)
    setup = ExtractionSetup(resolved, backbone, cache)
    infos = list(cache.layers.values())
    engine = setup.make_engine_selector(infos).open_first()
    preprocess = cache.extractor.preprocess
    paths = cache.paths_of(rows)
    sampled = listing.select(paths)
    pixels: dict[int, np.ndarray] = {}
    for i, image in read_images(sampled, range(len(rows))):
        if isinstance(image, ImageUnreadableError):
            raise image
        pixels[i] = decoding.decode_image(image.data, preprocess)
    problems = []
    for info, fresh_features in zip(
        infos, engine.run(np.stack([pixels[i] for i in sorted(pixels)])), strict=True
    ):
        stored_features = cache.features(info.name, rows).astype(np.float32)
        norm = np.linalg.norm(fresh_features, axis=1)
        error = np.linalg.norm(stored_features - fresh_features, axis=1) / np.maximum(norm, 1e-12)
        is_low_precision = cache.extractor.precision != "float32"
        limit = LOW_PRECISION_TOLERANCE if is_low_precision else RELATIVE_TOLERANCE[info.dtype]
        for k in np.flatnonzero(error > limit):
            problems.append(
                f"features/{info.name} of {paths[k]} differ from a fresh pass "
                f"by {error[k]:.1e} of their norm"
            )
    return problems


def _add_checksums(path: Path) -> None:
    """Compute a checksum of the stored features for every finished row without one.

    A cache of format 1.0 has no columns for checksums: it is copied to a new file, which replaces
    it.

    Raises
    ------
    CacheBusyError, DiskFullError
        If another process writes to the cache, or the disk is full.
    OutputError
        If the cache cannot be written, or an earlier run left a partial cache.
    """
    with WriteLock(path) as lock:
        lock.require_held()
        cache = FeatureCache(path)
        if not cache.unchecked_rows:
            return
        if cache.has_checksums:
            with CacheWriter(path) as writer:
                _write_missing_checksums(writer)
            return
        part = partial_path(path)
        if part.exists():
            raise OutputError(
                f"{part} is left from a run that was adding to the cache; run that again to "
                "finish it, or remove it"
            )
        stat_columns = cache.column("size"), cache.column("mtime_ns")
        listing = ImageListing(
            FolderSource(cache.root),
            cache.paths,
            *stat_columns,
            skipped=[],
            include=tuple(cache.include),
            exclude=tuple(cache.exclude),
        )
        open_partial(cache, list(cache.layers.values()), listing)
        all_rows = np.arange(cache.n_rows)
        diff = ListingDiff(all_rows, np.ones(len(all_rows), bool), np.zeros(len(all_rows), bool), 0)
        with CacheWriter(part) as writer:
            copy_unchanged(cache, writer, diff, listing, RetryPolicy(transient=False))
            _write_missing_checksums(writer)
        replace_original(cache)


def _write_missing_checksums(writer: CacheWriter) -> None:
    marked = np.flatnonzero(writer.status == MARKED)
    for name, info in writer.layout.layers.items():
        block_rows = max(1, COPY_CHUNK_BYTES // (4 * info.dim))
        for start in range(0, len(marked), block_rows):
            rows = marked[start : start + block_rows]
            sha256, stored = (
                writer.read_rows("images/sha256", rows),
                writer.read_rows(f"checksums/{name}", rows),
            )
            is_missing = is_unchecked(stored, sha256)
            rows, sha256 = rows[is_missing], sha256[is_missing]
            checksums = compute_checksums(sha256, writer.read_rows(f"features/{name}", rows))
            writer.write_checksums(rows, name, checksums)
