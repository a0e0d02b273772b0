"""What a run has to do: options settled against the cache, images compared with its rows.

No torch here: an unchanged collection is recognised without it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from featurize.images import decoding
from featurize.cache.reader import FeatureCache
from featurize.engines import PRECISIONS, check_engine
from featurize.errors import CallError, FingerprintMismatchError, ImageUnreadableError
from featurize.backbones.families import DEFAULT_BACKBONE, parse_layers
from featurize.images.decoding import ImageListing
from featurize.cache.format import FAILED, PENDING, Extractor
from featurize.names import is_file_path, read_backbone_name
from featurize.images.preprocess import DECODE_MODES

DTYPES = {"float32": "<f4", "float16": "<f2"}
MAX_VANISHED_SHARE = 0.1


@dataclass(frozen=True)
class Options:
    """What was asked for; None means: as in the cache, or the default of a new one."""

    backbone: str | None = None
    weights: str | None = None
    layers: str | None = None
    pool: str | None = None
    dtype: str | None = None
    precision: str | None = None
    decode: str | None = None
    preprocess: str | None = None
    engine: str = "auto"
    device: str = "auto"

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises
        ------
        CallError
        """
        for name, value, known in (
            ("dtype", self.dtype, tuple(DTYPES)),
            ("precision", self.precision, PRECISIONS),
            ("decode", self.decode, DECODE_MODES),
        ):
            if value is not None and value not in known:
                raise CallError(f"--{name} is one of {', '.join(known)}, not {value!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise CallError(f"no device {self.device!r}; use auto, cpu, cuda or cuda:1")
        check_engine(self.engine, self.device, self.precision or "float32")
        if self.precision == "tf32" and self.device == "cpu":
            raise CallError("--precision tf32 is for GPUs; on the processor use float32 or bf16")
        for name, value in (("backbone", self.backbone), ("weights", self.weights)):
            if value is not None and is_file_path(value) and not Path(value).is_file():
                raise CallError(f"--{name}: there is no file {value}")


@dataclass(frozen=True)
class ResolvedOptions:
    """Options with nothing left open. `layers` are (layer, pool); `fixed` are not to be loaded."""

    backbone: str
    weights: str | None
    layers: list[tuple[str, str]]
    dtype: str
    precision: str
    decode: str
    preprocess: str | None
    engine: str
    device: str


def resolve_options(
    options: Options, cache: FeatureCache | None, own_name: str | None = None
) -> ResolvedOptions:
    """Complete the options from the cache, or from the defaults where there is none.

    Parameters
    ----------
    own_name : str, optional
        The name of a network passed in from Python.
    """
    options.check()
    common = {"preprocess": options.preprocess, "engine": options.engine, "device": options.device}
    if cache is None:
        backbone = own_name or options.backbone or DEFAULT_BACKBONE
        return ResolvedOptions(
            backbone=backbone,
            weights=options.weights,
            layers=parse_layers(
                options.layers or "last", options.pool, _resolve_backbone_name(backbone)
            ),
            dtype=options.dtype or "float32",
            precision=options.precision or "float32",
            decode=options.decode or "exact",
            **common,  # type: ignore[arg-type]
        )
    made = cache.extractor
    backbone = own_name or options.backbone or made.backbone
    there = [(info.layer, info.pool) for info in cache.layers.values()]
    asked = (
        parse_layers(options.layers, options.pool, _resolve_backbone_name(backbone))
        if options.layers
        else []
    )
    weights = options.weights
    if weights is None and backbone == made.backbone:
        weights = made.environment.get("weights_file") or made.weights
    return ResolvedOptions(
        backbone=backbone,
        weights=weights,
        layers=[*there, *(pair for pair in asked if pair not in there)],
        dtype=options.dtype or _find_dtype(cache),
        precision=options.precision or made.precision,
        decode=options.decode or str(made.preprocess.get("decode", "exact")),
        **common,  # type: ignore[arg-type]
    )


def _resolve_backbone_name(backbone: str) -> str:
    """The network's name, where a file stands for it."""
    if not is_file_path(backbone):
        return backbone
    try:
        with safe_open(backbone, "np") as file:
            return read_backbone_name(file.metadata() or {})
    except (OSError, SafetensorError):
        return Path(backbone).stem


def _find_dtype(cache: FeatureCache) -> str:
    return next(n for n, code in DTYPES.items() if code == cache.layer().dtype)


def is_same_extractor(resolved: ResolvedOptions, options: Options, cache: FeatureCache) -> bool:
    """Whether the cache is known, without loading anything, to be of the extractor wanted.

    Raises
    ------
    FingerprintMismatch
        If it is known to be of another.
    """
    made = cache.extractor
    fields = {
        "backbone": (made.backbone, resolved.backbone),
        "precision": (made.precision, resolved.precision),
        "preprocess.decode": (made.preprocess.get("decode"), resolved.decode),
        "dtype": (_find_dtype(cache), resolved.dtype),
    }
    if is_file_path(resolved.backbone):
        del fields["backbone"]  # the file names it
    _raise_if_different(cache, fields)
    if options.preprocess is not None or is_file_path(resolved.backbone):
        return False
    if options.weights is None:
        return True
    if is_file_path(options.weights):
        return hash_file(options.weights) == made.environment.get("weights_file_sha256")
    return options.weights == made.weights


def hash_file(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_extractor(cache: FeatureCache, extractor: Extractor, dtype: str) -> None:
    """Refuse to mix features of two extractors in one cache.

    Raises
    ------
    FingerprintMismatch
        Naming the fields that differ.
    """
    pairs = {
        name: (getattr(cache.extractor, name), getattr(extractor, name))
        for name in ("backbone", "weights_sha256", "preprocess", "precision")
    }
    pairs["dtype"] = (_find_dtype(cache), dtype)
    _raise_if_different(cache, pairs)


def _raise_if_different(cache: FeatureCache, fields: Mapping[str, tuple[Any, Any]]) -> None:
    differing = [
        _describe_difference(name, *pair) for name, pair in fields.items() if pair[0] != pair[1]
    ]
    if differing:
        raise FingerprintMismatchError(
            f"{cache.path} was made otherwise than asked for: {'; '.join(differing)}. "
            "Leave the option out to go on with the cache as it is, or give another -o"
        )


def _describe_difference(name: str, there: Any, here: Any) -> str:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        pairs = [f"{name}.{key} is {there.get(key)!r}, asked for {here.get(key)!r}" for key in keys]
        return "; ".join(sorted(pairs))
    if name == "weights_sha256":
        there, here = f"{there[:12]}...", f"{here[:12]}..."
    return f"{name} is {there!r}, asked for {here!r}"


@dataclass(frozen=True)
class ListingDiff:
    """A listing beside a cache's rows.

    Attributes
    ----------
    old_row : int array of shape (N,)
        The row of each listed image in the cache; -1 where it has none.
    unchanged : bool array of shape (N,)
        Its size and time are those of its row.
    young : bool array of shape (N,)
        Its size is; it was read too soon after it was written to be sure by the time.
    vanished : int
        Rows whose image is no longer listed.
    """

    old_row: np.ndarray
    unchanged: np.ndarray
    maybe_unchanged: np.ndarray
    n_vanished: int

    @property
    def has_same_paths(self) -> bool:
        """Whether the cache has exactly the listed images."""
        return self.n_vanished == 0 and bool((self.old_row >= 0).all())


def diff_listing(listing: ImageListing, cache: FeatureCache) -> ListingDiff:
    """Match images with rows by path, size and time; no image is opened."""
    if listing.paths == cache.paths:  # the common case, without a dictionary
        old_row = np.arange(cache.n_rows)
    else:
        row_of = cache.row_of
        old_row = np.array([row_of.get(path, -1) for path in listing.paths], np.int64)
    sizes, mtimes_ns = cache.column("size")[old_row], cache.column("mtime_ns")[old_row]
    unchanged = (old_row >= 0) & (sizes == listing.sizes) & (mtimes_ns == listing.mtimes_ns)
    young = (old_row >= 0) & (sizes == listing.sizes) & (mtimes_ns == 0) & ~unchanged
    return ListingDiff(old_row, unchanged, young, cache.n_rows - int((old_row >= 0).sum()))


def refuse_mass_removal(listing: ImageListing, cache: FeatureCache, diff: ListingDiff) -> None:
    """Refuse where more than a tenth of the rows would be lost: a mistyped or half-mounted folder.

    Renamed images are not lost; so where many paths are gone, new files of the same sizes are
    looked into first.

    Raises
    ------
    CallError
    """
    limit = MAX_VANISHED_SHARE * cache.n_rows
    if diff.n_vanished <= limit:
        return
    kept = np.zeros(cache.n_rows, bool)
    kept[diff.old_row[diff.old_row >= 0]] = True
    gone = np.flatnonzero(~kept)
    lost = diff.n_vanished - _count_renamed(listing, cache, diff, gone)
    if lost > limit:
        raise CallError(
            f"{lost} of the {cache.n_rows} images in {cache.path} are not in {listing.root} "
            f"(first: {cache.paths[gone[0]]}). Is the folder right, and mounted? "
            "If they are meant to go, add --prune"
        )


def _count_renamed(
    listing: ImageListing, cache: FeatureCache, diff: ListingDiff, gone: np.ndarray
) -> int:
    sizes = set(cache.column("size")[gone].tolist())
    gone_digests = Counter(row.tobytes() for row in cache.column("sha256")[gone])
    new = [row for row in np.flatnonzero(diff.old_row < 0) if int(listing.sizes[row]) in sizes]

    def digest(row: int) -> bytes:
        try:
            return decoding.compute_sha256(decoding.read_image_file(listing.full_path(row)).data)
        except ImageUnreadableError:
            return b""

    with ThreadPoolExecutor() as pool:
        return (gone_digests & Counter(pool.map(digest, new))).total()


@dataclass(frozen=True)
class RetryPolicy:
    """Which finished rows are looked at again.

    Attributes
    ----------
    failed : bool
        Every failed one.
    rehash : bool
        All of them.
    transient : bool
        Those that failed by the system's fault; every run does so.
    """

    failed: bool = False
    rehash: bool = False
    transient: bool = True

    def select_failures(self, cache: FeatureCache) -> np.ndarray:
        """Failed rows to try again: bool (N,)."""
        reasons = decoding.TRANSIENT if self.transient else ()
        transient = np.isin(cache.column("reason"), list(reasons))
        return np.asarray((cache.status == FAILED) & (transient | self.failed))


@dataclass(frozen=True)
class PendingRows:
    """Which rows of a cache a run has to look at.

    Attributes
    ----------
    look : int array
        Finished rows whose file changed its time, or is read again: unchanged after all where its
        bytes have the same hash.
    compute : int array
        Others: pending, or to be tried again.
    """

    recheck: np.ndarray
    compute: np.ndarray


def find_pending_rows(
    cache: FeatureCache, unchanged: np.ndarray, retry: RetryPolicy
) -> PendingRows:
    """Rows of a cache that are not finished, given which of them are unchanged: bool (N,)."""
    again = (cache.status == PENDING) | retry.select_failures(cache)
    if retry.rehash:
        again |= cache.damaged_rows()
    look = (~unchanged | retry.rehash) & ~again
    return PendingRows(np.flatnonzero(look), np.flatnonzero(again))
