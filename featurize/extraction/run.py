"""`run`: the one public way to make a feature cache, or to complete one."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from featurize.cache.builder import estimate_cache_bytes, remove_temporary_files
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError, RunInterruptedError
from featurize.extraction.changes import (
    ListingDiff,
    RetryPolicy,
    diff_listing,
    find_pending_rows,
    refuse_mass_removal,
)
from featurize.extraction.dry_run import Estimate, estimate_run
from featurize.extraction.grow import (
    CacheCompletion,
    allocate_for_listing,
    open_if_exists,
    partial_path,
)
from featurize.extraction.options import (
    Options,
    ResolvedOptions,
    is_same_extractor,
    resolve_options,
)
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.summary import Summary
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.stats import RunStats
from featurize.sources import folder as folder_source
from featurize.sources.folder import ImageListing
from featurize.sources.patterns import GlobFilter
from featurize.system import cpu, signals
from featurize.text import to_printable

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

_KEEP_ADVICE = "It is left as it is; give another -o"


def run(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    backbone: "str | Backbone | None" = None,
    weights: str | None = None,
    layers: str | None = None,
    pool: str | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    decode: str | None = None,
    preprocess: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    dry_run: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    prune: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    follow: bool = False,
    report: Callable[[RunStats], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Summary | Estimate:
    """Embed every image of a folder, once, into a feature cache.

    A cache that is there already is completed: rows that are done are left alone, and options
    not given are taken from it.

    Parameters
    ----------
    folder : path
        The images, in any depth of folders.
    output : path
        The cache, an HDF5 file.
    backbone : str or Backbone, optional
        A torchvision network or ``seedling`` by name, a weights file that names its network, or a
        `Backbone` of your own. Default ``resnet50``.
    weights : str, optional
        torchvision's name for them, or a local ``.safetensors`` or ``.pth`` file.
    layers : str, optional
        ``last`` (the default), ``auto`` (every stage), or names with pools: ``layer3,layer4:max``.
    pool : {"avg", "max", "avgmax", "none", "token"}, optional
        For layers that name none.
    dtype : {"float32", "float16"}, optional
        As stored.
    precision : {"float32", "tf32", "bf16", "fp16"}, optional
        As computed.
    decode : {"exact", "fast"}, optional
        ``fast`` lets large JPEGs be decoded at reduced size; pixels differ slightly.
    preprocess : str, optional
        A weights name whose preprocessing to take, or a JSON file.
    engine : {"auto", "eager", "compile", "onnxruntime", "cuda"}, optional
        What runs the network. ``auto`` weighs what a faster one costs to start against the images
        left. It does not decide the features: in float32 all agree to 1e-5 of a row's norm.
    device : str, optional
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    dry_run : bool
        Say what would be done and what it would cost; write nothing.
    retry_failed : bool
        Try every failed image again; those that failed by the system's fault are in any case.
    rehash : bool
        Read every file and compare its hash, instead of trusting size and time.
    prune : bool
        Allow more than a tenth of the rows to go, because their images are gone.
    include, exclude : list of str, optional
        Globs over the images' paths: which of them count
        (`featurize.sources.patterns.GlobFilter`). As in the cache where they are not given;
        ``["**"]`` and ``[]`` are all images.
    follow : bool
        Follow links that lead out of the folder as well.
    report : callable
        Called often with the run's `RunStats`.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    Summary, or Estimate for a dry run

    Raises
    ------
    CallError, BackboneError, UnknownLayerError
        If the call is wrong: folder, options, output.
    CacheFormatError, FingerprintMismatchError
        If `output` exists and is no cache, or one of another extractor.
    EngineError
        If the engine asked for cannot run the network.
    CacheBusyError, DiskFullError
    RunInterruptedError
        On Ctrl-C; what is done is kept and marked.
    """
    started = time.perf_counter()
    path = Path(output)
    if path.is_symlink():  # the link stays, what it points to is written
        path = path.resolve()
    _check_output_path(path)
    custom_backbone = None if backbone is None or isinstance(backbone, str) else backbone
    options = Options(
        backbone=backbone if isinstance(backbone, str) else None,
        weights=weights,
        layers=layers,
        pool=pool,
        dtype=dtype,
        precision=precision,
        decode=decode,
        preprocess=preprocess,
        engine=engine,
        device=device,
    )
    # What is no cache is refused before a lock is put beside it.
    before = open_if_exists(path, _KEEP_ADVICE)
    listing = _list_images(folder, include, exclude, follow, before, say)
    stats, retry = RunStats(workers=cpu.usable_cores()), RetryPolicy(retry_failed, rehash)
    lock = WriteLock(path)
    with nullcontext() if dry_run else lock:
        if lock.unsupported_reason:
            say(
                f"{path} cannot be locked ({lock.unsupported_reason}): let no other run write to it"
            )
        cache = open_if_exists(path, _KEEP_ADVICE)
        resolved = resolve_options(
            options, cache, custom_backbone.name if custom_backbone else None
        )
        setup = ExtractionSetup(resolved, custom_backbone, cache, say)
        diff = None if cache is None else diff_listing(listing, cache)
        if cache is not None and diff is not None:
            if custom_backbone or not is_same_extractor(resolved, options, cache):
                _ = setup.backbone  # refuses another extractor, before anything is touched
            if not prune:
                refuse_mass_removal(listing, cache, diff)
        if dry_run:
            return estimate_run(path, listing, cache, diff, setup, retry)
        if lock.unheld_reason and not _is_complete(cache, diff, resolved, retry):
            lock.require_held()
        try:
            if not lock.unheld_reason:
                remove_temporary_files(path)
            if cache is None or diff is None:
                cache = _allocate_cache(path, listing, setup, say)
                diff = diff_listing(listing, cache)
            CacheCompletion(cache, diff, listing, setup, retry, stats, report, say).run()
            if not lock.unheld_reason:  # every image that was suspected has been met, or is gone
                in_flight_path(cache.path).unlink(missing_ok=True)
        except KeyboardInterrupt:
            signals.acknowledge()
            summary = Summary.of(path, stats, time.perf_counter() - started)
            raise RunInterruptedError(_format_stop_message(path), summary.to_dict()) from None
        return Summary.of(path, stats, time.perf_counter() - started)


def _check_output_path(path: Path) -> None:
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise CallError(f"{path} is a folder; give the cache a file name: -o {path / 'cache.h5'}")


def _list_images(
    folder: str | os.PathLike[str],
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    follow: bool,
    cache: FeatureCache | None,
    say: Callable[[str], None],
) -> ImageListing:
    """List the images that count, and name those that do not, in the folder and in the cache."""
    include = getattr(cache, "include", ()) if include is None else include
    exclude = getattr(cache, "exclude", ()) if exclude is None else exclude
    listing = folder_source.list_images(folder, include, exclude, follow=follow)
    for sentence in listing.skipped:
        say(sentence)
    patterns = GlobFilter(listing.include, listing.exclude)
    if cache is not None and patterns:
        excluded = [path for path in cache.paths if not patterns.accepts(path)]
        if excluded:
            say(
                f"{len(excluded):,} rows of {cache.path} go: --include and --exclude leave their "
                f"images out (first: {to_printable(excluded[0])})"
            )
    return listing


def _is_complete(
    cache: FeatureCache | None,
    diff: ListingDiff | None,
    resolved: ResolvedOptions,
    retry: RetryPolicy,
) -> bool:
    """Whether there is nothing to write."""
    if cache is None or diff is None or not diff.has_same_paths:
        return False
    if set(resolved.layers) != {(info.layer, info.pool) for info in cache.layers.values()}:
        return False
    pending = find_pending_rows(cache, diff.unchanged, retry)
    return not len(pending.recheck) + len(pending.compute)


def _allocate_cache(
    path: Path, listing: ImageListing, setup: ExtractionSetup, say: Callable[[str], None]
) -> FeatureCache:
    layers = setup.describe_layers(setup.resolved.layers)
    needed = estimate_cache_bytes(layers, len(listing.paths))
    say(f"{path} takes {needed / 1e6:,.1f} MB for {len(listing.paths):,} images")
    allocate_for_listing(path, setup.extractor, layers, listing)
    return FeatureCache(path)


def _format_stop_message(path: Path) -> str:
    places = [place for place in (path, partial_path(path)) if place.exists()]
    if not places:
        return "stopped before anything was written"
    place = max(places, key=lambda place: place.stat().st_mtime_ns)
    count = FeatureCache(place).counts
    finished = count["ok"] + count["failed"]
    return (
        f"stopped; {finished:,} of {sum(count.values()):,} rows are done and kept in {place}. "
        "The same command goes on from there"
    )
