"""`run`: the one public way to make a feature cache, or to complete one."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featurize import __version__
from featurize.cache import writer
from featurize.cache.content_index import ContentIndex
from featurize.cache.format import PENDING, LayerInfo
from featurize.cache.lock import WriteLock
from featurize.cache.reader import FeatureCache
from featurize.cache.writer import CacheWriter
from featurize.errors import CacheFormatError, CallError, RunInterruptedError
from featurize.extraction import grow
from featurize.extraction.changes import (
    ListingDiff,
    RetryPolicy,
    diff_listing,
    find_pending_rows,
    refuse_mass_removal,
)
from featurize.extraction.dry_run import Estimate, estimate_run, suggest_fast_decoding
from featurize.extraction.options import (
    Options,
    ResolvedOptions,
    is_same_extractor,
    resolve_options,
)
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.summary import Summary
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.pipeline import process_rows
from featurize.pipeline.prefetch import ExtractionJob
from featurize.pipeline.stats import RunStats
from featurize.sources import folder as folder_source
from featurize.sources.folder import ImageListing
from featurize.sources.patterns import GlobFilter
from featurize.system import cpu, signals
from featurize.text import to_printable

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone


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
        Globs over the images' paths: which of them count (`featurize.sources.patterns.GlobFilter`). As in
        the cache where they are not given; ``["**"]`` and ``[]`` are all images.
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
    CallError, BackboneError, UnknownLayer
        If the call is wrong: folder, options, output.
    CacheFormatError, FingerprintMismatch
        If `output` exists and is no cache, or one of another extractor.
    EngineError
        If the engine asked for cannot run the network.
    CacheBusy, DiskFull
    Interrupted
        On Ctrl-C; what is done is kept and marked.
    """
    started = time.perf_counter()
    path = Path(output)
    if path.is_symlink():  # the link stays, what it points to is written
        path = path.resolve()
    _check_output_path(path)
    own = None if backbone is None or isinstance(backbone, str) else backbone
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
    options.check()
    before = _open_if_exists(path)  # what is no cache is refused before a lock is put beside it
    taken = (_resolve_globs(include, before, "include"), _resolve_globs(exclude, before, "exclude"))
    listing = folder_source.list_images(folder, *taken, follow=follow)
    for sentence in listing.skipped:
        say(sentence)
    if before is not None:
        _report_excluded_rows(before, listing, say)
    measure = RunStats(workers=cpu.usable_cores())
    retry = RetryPolicy(failed=retry_failed, rehash=rehash)
    lock = WriteLock(path)
    with nullcontext() if dry_run else lock:
        if lock.unsupported_reason:
            say(
                f"{path} cannot be locked ({lock.unsupported_reason}): let no other run write to it"
            )
        cache = _open_if_exists(path)
        wanted = resolve_options(options, cache, own.name if own else None)
        loader = ExtractionSetup(wanted, own, cache, say)
        if cache is not None:
            if own or not is_same_extractor(wanted, options, cache):
                _ = loader.backbone  # refuses another extractor, before anything is touched
            if not prune:
                refuse_mass_removal(listing, cache, diff_listing(listing, cache))
        if dry_run:
            return estimate_run(path, listing, cache, wanted, loader, retry)
        if lock.unheld_reason and not _is_complete(cache, listing, wanted, retry):
            lock.require_held()
        try:
            if not lock.unheld_reason:
                writer.remove_temporary_files(path)
            if cache is None:
                cache = _allocate_cache(path, listing, wanted.layers, loader, say)
            job = _Extraction(
                cache, diff_listing(listing, cache), listing, loader, retry, measure, report
            )
            job.run(wanted.layers, say)
            if not lock.unheld_reason:  # every image that was suspected has been met, or is gone
                in_flight_path(cache.path).unlink(missing_ok=True)
        except KeyboardInterrupt:
            signals.acknowledge()
            summary = Summary.of(path, measure, time.perf_counter() - started)
            raise RunInterruptedError(_format_stop_message(path), summary.to_dict()) from None
        return Summary.of(path, measure, time.perf_counter() - started)


def _resolve_globs(
    asked: Sequence[str] | None, cache: FeatureCache | None, kind: str
) -> Sequence[str]:
    return getattr(cache, kind, ()) if asked is None else asked


def _report_excluded_rows(
    cache: FeatureCache, listing: ImageListing, say: Callable[[str], None]
) -> None:
    """Name the rows that go because the globs leave them out."""
    patterns = GlobFilter(listing.include, listing.exclude)
    gone = [path for path in cache.paths if not patterns.accepts(path)] if patterns else []
    if gone:
        say(
            f"{len(gone):,} rows of {cache.path} go: --include and --exclude leave their images "
            f"out (first: {to_printable(gone[0])})"
        )


def _is_complete(
    cache: FeatureCache | None, listing: ImageListing, resolved: ResolvedOptions, retry: RetryPolicy
) -> bool:
    """Whether there is nothing to write."""
    if cache is None:
        return False
    found, layers = diff_listing(listing, cache), {(i.layer, i.pool) for i in cache.layers.values()}
    same = found.has_same_paths and set(resolved.layers) == layers
    if not same:
        return False
    todo = find_pending_rows(cache, found.unchanged, retry)
    return not len(todo.recheck) + len(todo.compute)


def _check_output_path(path: Path) -> None:
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise CallError(f"{path} is a folder; give the cache a file name: -o {path / 'cache.h5'}")


def _open_if_exists(path: Path) -> FeatureCache | None:
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except CacheFormatError as error:
        raise CacheFormatError(f"{error}. It is left as it is; give another -o") from error


def _format_stop_message(path: Path) -> str:
    places = [place for place in (path, grow.partial_path(path)) if place.exists()]
    if not places:
        return "stopped before anything was written"
    place = max(places, key=lambda place: place.stat().st_mtime_ns)
    count = FeatureCache(place).counts
    finished = count["ok"] + count["failed"]
    return (
        f"stopped; {finished:,} of {sum(count.values()):,} rows are done and kept in {place}. "
        "The same command goes on from there"
    )


def _allocate_cache(
    path: Path,
    listing: ImageListing,
    layers: Sequence[tuple[str, str]],
    setup: ExtractionSetup,
    say: Callable[[str], None],
) -> FeatureCache:
    infos = setup.describe_layers(layers)
    needed = writer.estimate_cache_bytes(infos, len(listing.paths))
    say(f"{path} takes {needed / 1e6:,.1f} MB for {len(listing.paths):,} images")
    writer.allocate_cache(
        path,
        setup.extractor,
        infos,
        listing.paths,
        listing.sizes,
        listing.mtimes_ns,
        root=str(listing.root.resolve()),
        include=listing.include,
        exclude=listing.exclude,
        created_by=_CREATED_BY,
    )
    return FeatureCache(path)


class _Extraction:
    """Completes one cache, in place or by growing it."""

    def __init__(
        self,
        cache: FeatureCache,
        diff: ListingDiff,
        listing: ImageListing,
        setup: ExtractionSetup,
        retry: RetryPolicy,
        stats: RunStats,
        report: Callable[[RunStats], None],
    ) -> None:
        self.cache, self.diff, self.listing, self.setup = cache, diff, listing, setup
        self.retry, self.stats, self.report = retry, stats, report

    def run(self, layers: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
        there = list(self.cache.layers.values())
        if set(layers) != {(info.layer, info.pool) for info in there}:
            self._grow(self.setup.describe_layers(layers), say)
        elif not self.diff.has_same_paths:
            self._grow(there, say)
        else:
            part = grow.partial_path(self.cache.path)
            if part.exists():
                say(
                    f"{part} is left from a run that was adding to the cache; "
                    "run that again to finish it, or remove it"
                )
            self._complete_in_place(there)

    def _complete_in_place(self, layers: list[LayerInfo]) -> None:
        """Finish the rows of the cache in place."""
        todo = find_pending_rows(self.cache, self.diff.unchanged, self.retry)
        self.stats.total += len(todo.recheck) + len(todo.compute)
        if self.stats.total:
            with CacheWriter(self.cache.path) as into:
                self._recheck_rows(todo.recheck, todo.compute, layers, into, [])
                contents = grow.build_content_index(into, [], todo.compute, self.retry)
                self._process_rows(todo.compute, layers, into, contents)

    def _grow(self, layers: list[LayerInfo], say: Callable[[str], None]) -> None:
        """Make the grown cache beside the old one, then put it in its place."""
        cache = self.cache
        older = grow.open_partial(cache, layers, self.listing, created_by=_CREATED_BY, say=say)
        with CacheWriter(grow.partial_path(cache.path)) as into:
            known = grow.copy_unchanged(cache, into, self.diff, self.listing, self.retry)
            pending, stale = into.status == PENDING, grow.find_stale_rows(into, self.listing)
            self.stats.total += int(pending.sum()) + len(stale)
            self._recheck_rows(stale, np.flatnonzero(pending), layers, into, older)
            contents = grow.build_content_index(into, older, np.flatnonzero(pending), self.retry)
            if len(known.rows):
                recorded = np.zeros((len(pending), 32), np.uint8)
                recorded[known.rows] = cache.column("sha256")[known.old_rows]
                missing = [info for info in layers if info.name not in cache.layers]
                changed = self._process_rows(
                    known.rows, missing, into, contents, recorded=recorded, new_layers_only=True
                )
                self.stats.total += len(changed)
                pending[known.rows] = False
                pending[changed] = True
            self._process_rows(np.flatnonzero(pending), layers, into, contents)
        grow.replace_original(cache)

    def _recheck_rows(
        self,
        rows: np.ndarray,
        pending_rows: np.ndarray,
        layers: list[LayerInfo],
        into: CacheWriter,
        older: list[FeatureCache],
    ) -> None:
        """Read finished rows again, before others: what they hold is at hand for those then."""
        if len(rows):
            recorded = np.zeros((len(into.status), 32), np.uint8)
            recorded[rows] = into.read_rows("images/sha256", rows)
            but = np.concatenate([rows, pending_rows])
            contents = grow.build_content_index(into, older, but, self.retry)
            self._process_rows(rows, layers, into, contents, recorded=recorded)

    def _process_rows(
        self,
        rows: np.ndarray,
        layers: list[LayerInfo],
        into: CacheWriter,
        content_index: ContentIndex,
        *,
        recorded: np.ndarray | None = None,
        new_layers_only: bool = False,
    ) -> list[int]:
        if not len(rows):
            return []
        task = ExtractionJob(
            self.listing,
            rows,
            dict(self.cache.extractor.preprocess),
            [info.name for info in layers],
            self.setup.make_engine_selector(layers),
            in_flight_path(self.cache.path),
            recorded,
            new_layers_only,
        )
        changed = process_rows(task, into, content_index, self.stats, self.report)
        if self.stats.bottleneck == "decode" and task.preprocess["decode"] == "exact":
            self.stats.hint = suggest_fast_decoding(self.listing, task.preprocess)
        return changed


_CREATED_BY = f"headgraft {__version__}"
