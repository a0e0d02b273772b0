"""`run`: make a feature cache, or complete one."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featurize.cache.builder import estimate_cache_bytes, remove_temporary_files
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError, RunInterruptedError
from featurize.extraction.completion.changes import (
    ListingDiff,
    RetryPolicy,
    diff_listing,
    find_pending_rows,
    refuse_mass_removal,
)
from featurize.extraction.completion.complete import CacheCompletion
from featurize.extraction.completion.known_images import recall_listing, reopen_source
from featurize.extraction.completion.label_table import (
    LabelTableUpdate,
    has_expected_labels,
)
from featurize.extraction.completion.partial_cache import (
    allocate_for_listing,
    open_if_exists,
    partial_path,
)
from featurize.extraction.dry_run import Estimate, estimate_run
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
from featurize.progress import Say, ignore
from featurize.sources.folder import FOLDER
from featurize.sources.listing import ImageListing
from featurize.sources.opening import ImagesArgument, describe_source, open_source
from featurize.sources.patterns import GlobFilter, check_patterns
from featurize.sources.source import SourceOptions
from featurize.system import cpu, signals
from featurize.text import format_count, to_printable

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone

_KEEP_ADVICE = "It is left as it is; give another -o"
_NOTABLE_BYTES = 100_000_000  # of a cache; smaller ones are not mentioned


def run(
    images: ImagesArgument,
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
    size: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    dry_run: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    prune: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    follow: bool = False,
    column: str | None = None,
    split: str | None = None,
    component: str | None = None,
    root: str | None = None,
    scratch: str | None = None,
    report: Callable[[RunStats], None] = ignore,
    say: Callable[[str], None] = ignore,
) -> Summary | Estimate:
    """Embed every image of a source into a feature cache.

    An existing cache is completed: finished rows are not computed again, and options not given are
    taken from it.

    Parameters
    ----------
    images : path or URL, or sequence of them
        A folder of images of any depth; tar shards, zip archives, Parquet or Arrow tables, or a
        folder of them; a list of images (``.csv``, ``.jsonl``, ``.parquet``); or any of these
        behind a URL. Labels that come with the images are written to ``OUTPUT.labels.csv``.
    output : path
        The cache, an HDF5 file.
    backbone : str or Backbone, optional
        As for `featurize.load_backbone`, or a `Backbone` made in Python. Default ``resnet50``.
    weights : str, optional
        As for `featurize.load_backbone`.
    layers : str, optional
        ``last`` (the default), ``auto`` (every stage), or names with pools: ``layer3,layer4:max``.
    pool : {"avg", "max", "avgmax", "none", "token"}, optional
        For layers without a pool of their own. Default ``avg`` for maps.
    dtype : {"float32", "float16"}, optional
        Of the stored features. Default ``float32``.
    precision : {"float32", "tf32", "bf16", "fp16"}, optional
        Of the arithmetic. Default ``float32``.
    decode : {"exact", "fast"}, optional
        ``fast`` decodes large JPEGs at reduced size; pixels differ slightly. Default ``exact``.
    preprocess : str, optional
        Name of weights whose preprocessing to use, or a JSON file. Default that of `weights`.
    size : int, optional
        Height and width in pixels at which the network sees images. Default that of `preprocess`.
    engine : {"auto", "eager", "compile", "onnxruntime", "cuda"}, optional
        Runs the network. ``auto`` changes to a faster engine if that saves more time than its
        start-up takes. In float32 the features of all engines agree to 1e-5 of a row's norm.
    device : str, optional
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    dry_run : bool
        Estimate the run; write nothing.
    retry_failed : bool
        Try every failed image again. Failures for a reason of the system's are always retried.
    rehash : bool
        Read every file and compare its hash, instead of comparing size and time.
    prune : bool
        Allow more than a tenth of the rows to be removed because their images are gone.
    include, exclude : list of str, optional
        Globs over the images' paths that select images
        (`featurize.sources.patterns.GlobFilter`). Default as in the cache; ``["**"]`` and ``[]``
        select all images.
    follow : bool
        Follow links that lead out of the folder.
    column : str, optional
        Of a table or a list: the column of the images, paths or URLs.
    split : str, optional
        Of tables, lists and shards: take only this split, as ``train``.
    component : str, optional
        Of WebDataset samples with several images: which one, as ``left.jpg``.
    root : str, optional
        Of a list: the folder or URL where its paths begin. Default the list's own folder.
    scratch : str, optional
        Of remote archives: a folder for copies, so that none is fetched twice.
    report : callable
        Called often with the run's `RunStats`.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    Summary or Estimate
        `Estimate` for a dry run.

    Raises
    ------
    CallError, BackboneError, UnknownLayerError
        If the images, an option or the output is invalid.
    CacheFormatError, FingerprintMismatchError
        If `output` exists and is not a cache, or has another extractor.
    EngineError
        If the requested engine cannot run the network.
    CacheBusyError, DiskFullError, OutputError
        If another process writes to the cache, or it cannot be written.
    RunInterruptedError
        On Ctrl-C; finished rows are written and marked.
    """
    started = time.perf_counter()
    path = Path(output)
    if path.is_symlink():  # keep the link, write to its target
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
        size=size,
        engine=engine,
        device=device,
    )
    # Refuse a file that is not a cache before a lock file is made.
    existing_cache = open_if_exists(path, _KEEP_ADVICE)
    source_options = SourceOptions(
        follow=follow, column=column, split=split, component=component, root=root, scratch=scratch
    )
    listing = _list_images(images, source_options, include, exclude, existing_cache, say)
    own_name = custom_backbone.name if custom_backbone else None
    lock, new_setup = WriteLock(path), None
    # Where the lock will be refused, that is said before a network is loaded, and perhaps fetched.
    makes_lock_file = not lock.path.exists() and os.access(path.parent, os.W_OK)
    if existing_cache is None and makes_lock_file and not dry_run:
        resolved = resolve_options(options, None, own_name)
        new_setup = _set_up_new_cache(path, resolved, custom_backbone, say)
    stats = RunStats(workers=cpu.usable_cores(), is_remote=listing.source.is_remote)
    retry = RetryPolicy(retry_failed, rehash)
    with nullcontext() if dry_run else lock:
        if lock.unsupported_reason:
            say(
                f"{path} cannot be locked ({lock.unsupported_reason}): let no other run write to it"
            )
        cache = open_if_exists(path, _KEEP_ADVICE)
        if cache is None and new_setup is not None:
            setup = new_setup
        else:
            resolved = resolve_options(options, cache, own_name)
            setup = ExtractionSetup(resolved, custom_backbone, cache, say)
        diff = None if cache is None else diff_listing(listing, cache)
        if cache is not None and diff is not None:
            if custom_backbone or not is_same_extractor(resolved, options, cache):
                _ = setup.backbone  # raises for another extractor, before anything is written
            if not prune:
                refuse_mass_removal(listing, cache, diff)
        if dry_run:
            return estimate_run(path, listing, cache, diff, setup, retry)
        if lock.unheld_reason and not _is_complete(cache, diff, setup, retry):
            lock.require_held()
        try:
            if not lock.unheld_reason:
                remove_temporary_files(path)
            is_new = cache is None
            if cache is None or diff is None:
                cache = _allocate_cache(path, listing, setup, say)
                diff = diff_listing(listing, cache)
            labels = LabelTableUpdate(path, listing, say)
            if not lock.unheld_reason:
                labels.begin(cache, diff, is_new)
            try:
                CacheCompletion(cache, diff, listing, setup, retry, stats, report, say).run()
            except BaseException:
                labels.stop()
                raise
            labels.finish()
            if not lock.unheld_reason:  # every suspect was tried, or is gone
                in_flight_path(cache.path).unlink(missing_ok=True)
        except KeyboardInterrupt:
            signals.acknowledge()
            summary = Summary.of(path, stats, time.perf_counter() - started)
            raise _make_stop_error(path, summary) from None
        return Summary.of(path, stats, time.perf_counter() - started)


def _set_up_new_cache(
    path: Path, resolved: ResolvedOptions, custom_backbone: "Backbone | None", say: Say
) -> ExtractionSetup:
    """Load the network before a lock file is made, which would stay if the network is mistyped."""
    setup = ExtractionSetup(resolved, custom_backbone, None, say)
    try:
        _ = setup.layers, setup.backbone
    except KeyboardInterrupt:
        signals.acknowledge()
        raise _make_stop_error(path, Summary(str(path))) from None
    return setup


def _check_output_path(path: Path) -> None:
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise CallError(f"{path} is a folder; give the cache a file name: -o {path / 'cache.h5'}")


def _list_images(
    images: ImagesArgument,
    options: SourceOptions,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    cache: FeatureCache | None,
    say: Callable[[str], None],
) -> ImageListing:
    """List the selected images, and report files and rows that are left out."""
    include = getattr(cache, "include", ()) if include is None else include
    exclude = getattr(cache, "exclude", ()) if exclude is None else exclude
    options = replace(
        options,
        include=check_patterns(include, "--include"),
        exclude=check_patterns(exclude, "--exclude"),
    )
    known = None
    if cache is None:
        source = open_source(images, options, say)
    else:
        source = reopen_source(cache, images, options, say)
        globs = [*options.include], [*options.exclude]
        if globs == (cache.include, cache.exclude) and has_expected_labels(cache):
            known = recall_listing(cache, source)
    listing = source.list_images(known)
    if source.kind != FOLDER:
        say(_describe_listing(listing))
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


def _describe_listing(listing: ImageListing) -> str:
    """Say what the source was taken for, and what came with its images."""
    columns = f"; {', '.join(listing.columns)} came with them" if listing.columns else ""
    count = format_count(len(listing.paths), "image")
    return f"{describe_source(listing.source)}, {count}{columns}"


def _is_complete(
    cache: FeatureCache | None,
    diff: ListingDiff | None,
    setup: ExtractionSetup,
    retry: RetryPolicy,
) -> bool:
    """Return whether there is nothing to write."""
    if cache is None or diff is None or not diff.has_same_paths:
        return False
    if set(setup.layers) != {(info.layer, info.pool) for info in cache.layers.values()}:
        return False
    pending = find_pending_rows(cache, diff.unchanged, retry)
    return not len(pending.recheck) + len(pending.compute)


def _allocate_cache(
    path: Path, listing: ImageListing, setup: ExtractionSetup, say: Callable[[str], None]
) -> FeatureCache:
    layers = setup.describe_layers(setup.layers)
    needed = estimate_cache_bytes(layers, len(listing.paths))
    if needed >= _NOTABLE_BYTES:
        say(f"{path} takes {needed / 1e6:,.1f} MB for {len(listing.paths):,} images")
    allocate_for_listing(path, setup.extractor, layers, listing)
    return FeatureCache(path)


def _make_stop_error(path: Path, summary: Summary) -> RunInterruptedError:
    """Make the error of a run that was stopped; its summary says so, and how to go on."""
    message = _format_stop_message(path)
    return RunInterruptedError(message, replace(summary, verdict=message).to_dict())


def _format_stop_message(path: Path) -> str:
    paths = [cache_path for cache_path in (path, partial_path(path)) if cache_path.exists()]
    if not paths:
        return "stopped before anything was written"
    cache_path = max(paths, key=lambda cache_path: cache_path.stat().st_mtime_ns)
    counts = FeatureCache(cache_path).counts
    finished = counts["ok"] + counts["failed"]
    return (
        f"stopped; {finished:,} of {sum(counts.values()):,} rows are done and kept in "
        f"{cache_path}. The same command goes on from there"
    )
