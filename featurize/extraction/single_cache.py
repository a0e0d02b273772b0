"""One run on one cache file: list, lock, compare, complete."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

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
from featurize.extraction.completion.label_table import LabelTableUpdate
from featurize.extraction.completion.listed_images import list_images
from featurize.extraction.completion.partial_cache import (
    allocate_for_listing,
    open_if_exists,
    partial_path,
)
from featurize.extraction.dry_run import Estimate, estimate_run
from featurize.extraction.options import is_same_extractor, resolve_options
from featurize.extraction.request import RunRequest
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.summary import Summary
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.stats import RunStats
from featurize.sources.listing import ImageListing
from featurize.system import cpu, signals

KEEP_ADVICE = "It is left as it is; give another -o"
_NOTABLE_BYTES = 100_000_000  # of a cache; smaller ones are not mentioned


def run_single_cache(path: Path, request: RunRequest) -> Summary | Estimate:
    """Make or complete one cache file.

    Parameters
    ----------
    path : Path
        The cache.
    request : RunRequest

    Returns
    -------
    Summary or Estimate
        `Estimate` for a dry run.

    Raises
    ------
    Exception
        As `featurize.extraction.run.run` does.
    """
    started = time.perf_counter()
    if path.is_symlink():  # keep the link, write to its target
        path = path.resolve()
    check_output_folder(path)
    stats = RunStats(workers=cpu.usable_cores())
    try:
        estimate = complete_cache(path, request, list_images, stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        if request.dry_run:
            raise
        summary = Summary.of(path, stats, time.perf_counter() - started)
        raise _make_stop_error(path, summary) from None
    return estimate or Summary.of(path, stats, time.perf_counter() - started)


ListImages = Callable[[RunRequest, FeatureCache | None], ImageListing]


def complete_cache(
    path: Path, request: RunRequest, list_images: ListImages, stats: RunStats
) -> Estimate | None:
    """Complete one cache file, which is made if it does not exist.

    Parameters
    ----------
    path : Path
        The cache, no link.
    request : RunRequest
    list_images : callable
        Lists the images of the cache, given the request and the cache as it is.
    stats : RunStats
        Updated in place.

    Returns
    -------
    Estimate or None
        `Estimate` for a dry run.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C; finished rows are written and marked.
    Exception
        Else as `featurize.extraction.run.run` does.
    """
    options, custom_backbone, say = request.options, request.custom_backbone, request.say
    dry_run = request.dry_run
    # Refuse a file that is not a cache before a lock file is made.
    existing_cache = open_if_exists(path, KEEP_ADVICE)
    listing = list_images(request, existing_cache)
    stats.is_remote = listing.source.is_remote
    own_name = custom_backbone.name if custom_backbone else None
    lock, new_setup = WriteLock(path), None
    # Where the lock will be refused, that is said before a network is loaded, and perhaps fetched.
    makes_lock_file = not lock.path.exists() and os.access(path.parent, os.W_OK)
    if existing_cache is None and makes_lock_file and not dry_run:
        # Load the network before a lock file is made, which would stay if it is mistyped.
        new_setup = ExtractionSetup(
            resolve_options(options, None, own_name),
            custom_backbone,
            None,
            say,
            computes_here=request.session is None,
        )
        _ = new_setup.layers, new_setup.backbone
    with nullcontext() if dry_run else lock:
        say_unlocked(lock, say)
        cache = open_if_exists(path, KEEP_ADVICE)
        if cache is None and new_setup is not None:
            setup = new_setup
        else:
            resolved = resolve_options(options, cache, own_name)
            computes_here = request.session is None
            setup = ExtractionSetup(
                resolved, custom_backbone, cache, say, computes_here=computes_here
            )
        diff = None if cache is None else diff_listing(listing, cache)
        if cache is not None and diff is not None:
            if custom_backbone or not is_same_extractor(setup.resolved, options, cache):
                _ = setup.backbone  # raises for another extractor, before anything is written
            if not request.prune:
                refuse_mass_removal(listing, cache, diff)
        if dry_run:
            return estimate_run(path, listing, cache, diff, setup, request.retry)
        complete_locked(CacheState(path, lock, cache, diff), listing, setup, request, stats)
    return None


@dataclass(frozen=True)
class CacheState:
    """A cache file as a run finds it, with the lock that the run holds.

    Attributes
    ----------
    path : Path
        The cache, no link.
    lock : WriteLock
        Entered; where nothing can be written it is not held.
    cache : FeatureCache or None
        None if there is no file yet.
    diff : ListingDiff or None
        Of the listing and `cache`.
    """

    path: Path
    lock: WriteLock
    cache: FeatureCache | None
    diff: ListingDiff | None


def complete_locked(
    state: CacheState,
    listing: ImageListing,
    setup: ExtractionSetup,
    request: RunRequest,
    stats: RunStats,
) -> None:
    """Complete a cache file whose lock is held; it is made if it does not exist.

    The caller has checked that the cache is of the extractor, and that the rows may go which are
    not listed.

    Parameters
    ----------
    state : CacheState
    listing : ImageListing
        The images that the cache is to have.
    setup : ExtractionSetup
        Its layers are those that the cache is to have.
    request : RunRequest
    stats : RunStats
        Updated in place.

    Raises
    ------
    OutputError
        If there is something to write and the lock is not held.
    KeyboardInterrupt
        On Ctrl-C; finished rows are written and marked.
    Exception
        Else as `featurize.extraction.run.run` does.
    """
    path, lock, cache, diff = state.path, state.lock, state.cache, state.diff
    retry, say = request.retry, request.say
    if lock.unheld_reason and not _is_complete(cache, diff, setup, retry):
        lock.require_held()
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
        CacheCompletion(
            cache, diff, listing, setup, retry, stats, request.report, say, request.session
        ).run()
    except BaseException:
        labels.stop()
        raise
    labels.finish()
    if not lock.unheld_reason:  # every suspect was tried, or is gone
        in_flight_path(cache.path).unlink(missing_ok=True)


def say_unlocked(lock: WriteLock, say: Callable[[str], None]) -> None:
    """Say that nothing keeps a second writer away, where the system cannot lock.

    Parameters
    ----------
    lock : WriteLock
        Entered.
    say : callable
    """
    if lock.unsupported_reason:
        say(
            f"{lock.cache} cannot be locked ({lock.unsupported_reason}): let no other run write "
            "to it"
        )


def check_output_folder(path: Path) -> None:
    """Check that there is a folder for a cache file.

    Parameters
    ----------
    path : Path
        The cache.

    Raises
    ------
    CallError
        If there is none.
    """
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to write {path.name} to; make it first")


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
