"""One run on a cache of parts: plan, then complete the parts that no other process holds."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import (
    DEFAULT_PART_ROWS,
    INDEX_NAME,
    PartsIndex,
    has_index,
    read_index,
)
from featurize.cache.reader import FeatureCache
from featurize.errors import (
    CacheBusyError,
    FingerprintMismatchError,
    HeadgraftError,
    NoImagesError,
    RunInterruptedError,
)
from featurize.extraction.completion.changes import (
    MAX_VANISHED_SHARE,
    ListingDiff,
    diff_listing,
    find_pending_rows,
    refuse_mass_removal,
)
from featurize.extraction.completion.label_table import has_label_files
from featurize.extraction.completion.listed_images import open_images, resolve_globs
from featurize.extraction.completion.partial_cache import open_if_exists, partial_path
from featurize.extraction.dry_run import Estimate
from featurize.extraction.options import is_same_extractor, resolve_options
from featurize.extraction.parts.estimate import estimate_parts
from featurize.extraction.parts.part_images import KeyRange, open_part_images
from featurize.extraction.parts.planning import (
    drop_part,
    find_position,
    find_range,
    make_index,
    plan_parts,
    refuse_mass_loss,
    register_layers,
    update_index,
)
from featurize.extraction.parts.process_rank import ProcessRank
from featurize.extraction.parts.tallies import OnceSaid, PartTally, Tallies, WholeProgress
from featurize.extraction.request import RunRequest
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.single_cache import (
    KEEP_ADVICE,
    CacheState,
    complete_locked,
    say_unlocked,
)
from featurize.extraction.summary import Summary
from featurize.layer_spec import LayerSpec
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.stats import RunStats
from featurize.sources.listing import ImageListing
from featurize.sources.opening import describe_source
from featurize.system import cpu, signals
from featurize.text import format_count


def run_parts(folder: Path, request: RunRequest) -> Summary | Estimate:
    """Make or complete a cache of parts.

    Parameters
    ----------
    folder : Path
        As of `find_parts_folder`.
    request : RunRequest

    Returns
    -------
    Summary or Estimate
        `Estimate` for a dry run.

    Raises
    ------
    Exception
        As `featurize.extraction.run.run` does, but for `CacheBusyError`: parts that other processes
        hold are left to them.
    """
    started = time.perf_counter()
    run = PartsRun(folder, replace(request, say=OnceSaid(request.say)))
    try:
        if request.dry_run:
            return run.estimate()
        run.run()
    except KeyboardInterrupt:
        signals.acknowledge()
        if request.dry_run:
            raise
        raise run.make_stop_error(time.perf_counter() - started) from None
    return run.summarise(time.perf_counter() - started)


class PartsRun:
    """One process's run over the parts of a cache.

    Parameters
    ----------
    folder : Path
        The cache of parts; it need not exist.
    request : RunRequest
    """

    def __init__(self, folder: Path, request: RunRequest) -> None:
        self.folder, self.request = folder, request
        self.rank = ProcessRank.of_environment()
        self.stats = RunStats(workers=self.rank.share(cpu.usable_cores()))
        self.tallies = Tallies(folder)
        self.index = read_index(folder) if has_index(folder) else None
        self._index_version = (0, 0)
        self._n_removed = 0

    def estimate(self) -> Estimate:
        """Estimate the run, over all parts; nothing is written.

        Returns
        -------
        Estimate
        """
        self._open_source()
        index = self.index or self._plan()
        setup = self._make_setup()
        return estimate_parts(self.folder, index, self.images, setup, self.request)

    def run(self) -> None:
        """Complete every part that no other process holds.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C; finished rows are written and marked.
        Exception
            Else as `featurize.extraction.run.run` does.
        """
        self._open_source()
        index = self.index or self._plan()
        self.setup = self._make_setup()
        if self.template is None:
            # Load the network before anything is made, which would stay if it is mistyped.
            self.setup.describe_layers(self.setup.layers)
        if self.index is None:
            index = make_index(self.folder, index)
        index = update_index(self.folder, index, self.images, self.globs, self.request.part_rows)
        self._refuse_mass_loss(index)
        self._say_plan(index)
        n_rows = self.images.count(KeyRange(""))
        self.progress = WholeProgress(self.request.report, n_rows)
        self.part_request = replace(self.request, report=self.progress.report)
        self._go_through(index)

    def _open_source(self) -> None:
        request = self.request
        self.template = self._find_template()
        self.globs = resolve_globs(request, self.index)
        source = open_images(request, self.template, self.globs)
        self.stats.is_remote = source.is_remote
        self.images = open_part_images(source, self.globs, self.template)

    def _find_template(self) -> FeatureCache | None:
        """Open a part from which options are taken: one with all layers, or else the first."""
        first = None
        if self.index is None:
            return None
        for part in self.index.parts:
            cache = open_if_exists(self.folder / part.file, KEEP_ADVICE)
            if cache is not None and cache.layers.keys() >= self.index.fingerprints.keys():
                return cache
            first = first or cache
        return first

    def _plan(self) -> PartsIndex:
        return plan_parts(self.images, self.request.part_rows or DEFAULT_PART_ROWS, self.globs)

    def _make_setup(self) -> ExtractionSetup:
        request, template = self.request, self.template
        own_name = request.custom_backbone.name if request.custom_backbone else None
        resolved = resolve_options(request.options, template, own_name)
        if self.index is not None:
            specs = [LayerSpec.parse(name) for name in self.index.fingerprints]
            resolved = resolved.with_cached_layers(specs)
        setup = ExtractionSetup(
            resolved,
            request.custom_backbone,
            template,
            request.say,
            local_rank=self.rank.local_rank,
        )
        if template is not None and (
            request.custom_backbone or not is_same_extractor(resolved, request.options, template)
        ):
            _ = setup.backbone  # raises for another extractor, before anything is written
        return setup

    def _refuse_mass_loss(self, index: PartsIndex) -> None:
        """Refuse to go on where too many parts have lost all their images."""
        if self.request.prune:
            return
        ranges = [(part, find_range(index, i)) for i, part in enumerate(index.parts)]
        gone = [part.file for part, keys in ranges if self.images.is_gone(keys)]
        gone = [file for file in gone if (self.folder / file).exists()]
        if gone:
            caches = [FeatureCache(self.folder / file) for file in gone]
            self._check_loss(sum(cache.n_rows for cache in caches), caches[0].paths[0])

    def _check_loss(self, n_lost: int, first: str) -> None:
        root = self.images.source.root
        refuse_mass_loss(self._n_removed + n_lost, self._count_all(), self.folder, root, first)

    def _count_all(self) -> int:
        """Count the rows of all parts."""
        for part in self._read_index().parts:
            self.tallies.look_at(part.file)
        return self.tallies.n_rows

    def _say_plan(self, index: PartsIndex) -> None:
        source, about = self.images.source, "" if self.images.is_exact else "about "
        n_rows = self.images.count(KeyRange(""))
        self.request.say(
            f"{describe_source(source)}: {format_count(len(index.parts), 'part')} of about "
            f"{min(n_rows, index.part_rows):,} images in {self.folder}/, {about}{n_rows:,} in all"
        )
        listing = getattr(self.images, "listing", None)
        for sentence in listing.skipped if listing is not None else ():
            self.request.say(sentence)

    def _read_index(self) -> PartsIndex:
        """Read the index again if it was replaced."""
        status = (self.folder / INDEX_NAME).stat()
        version = status.st_ino, status.st_mtime_ns
        if self.index is None or version != self._index_version:
            self.index, self._index_version = read_index(self.folder), version
        return self.index

    def _go_through(self, index: PartsIndex) -> None:
        """Go through the parts, and again through those that were busy, until none is free."""
        waiting, seen = self.rank.order([part.file for part in index.parts]), set[str]()
        while waiting:
            busy = []
            for file in waiting:
                try:
                    self._complete_part(file)
                except CacheBusyError:
                    busy.append(file)
            seen |= set(waiting)
            added = [part.file for part in self._read_index().parts if part.file not in seen]
            self.tallies.busy = busy
            if len(busy) == len(waiting) and not added:
                return
            waiting = [*busy, *added]

    def _complete_part(self, file: str) -> None:
        path = self.folder / file
        lock = WriteLock(path)
        with lock:
            say_unlocked(lock, self.request.say)
            index = self._read_index()
            position = find_position(index, file)
            if position is None:  # its images had gone
                return
            keys = find_range(index, position)
            cache = open_if_exists(path, KEEP_ADVICE)
            self._add_layers(index)
            if cache is not None:
                self._check_layers(cache, index)
                if self._is_untouched(cache, keys):
                    self._count_part(file, cache)
                    return
            try:
                listing = self.images.list_range(keys, cache)
            except NoImagesError as error:
                self._drop_part(path, cache, lock, error)
                return
            for sentence in listing.skipped:
                self.request.say(sentence)
            diff = None if cache is None else diff_listing(listing, cache)
            if cache is not None and diff is not None:
                self._refuse_removal(listing, cache, diff)
            if cache is None or not self._has_all_layers(cache):
                lock.require_held()
                self._register_layers(path)
            before = _identify(path)
            self.progress.begin_part(len(listing.paths), self.stats)
            self.setup.n_elsewhere = self._count_elsewhere(len(listing.paths))
            state = CacheState(path, lock, cache, diff)
            complete_locked(state, listing, self.setup, self.part_request, self.stats)
            self.tallies.n_changed += before != _identify(path)
            self._count_part(file, FeatureCache(path))

    def _count_part(self, file: str, cache: FeatureCache) -> None:
        self.tallies.parts[file] = PartTally.of(cache, is_complete=True)
        self.progress.end_part(cache.n_rows)
        self.progress.report(self.stats)

    def _add_layers(self, index: PartsIndex) -> None:
        """Take the layers that another process has added to the parts since."""
        names = {spec.key for spec in self.setup.layers}
        added = [LayerSpec.parse(name) for name in index.fingerprints if name not in names]
        if added:
            self.setup.add_layers(added)

    def _check_layers(self, cache: FeatureCache, index: PartsIndex) -> None:
        """Check that a part has no other layers than the whole is to have."""
        names = {spec.key for spec in self.setup.layers}
        for name, info in cache.layers.items():
            fingerprint = index.fingerprints.get(name, info.fingerprint)
            if fingerprint != info.fingerprint:
                raise self._explain_mismatch(cache.path, name, info.fingerprint, fingerprint)
            if name not in names:
                raise FingerprintMismatchError(
                    f"{cache.path} has the layer {name}, which other parts of {self.folder} have "
                    f"not. Add it to all of them by --layers {info.spec.option}"
                )

    def _explain_mismatch(
        self, path: Path, name: str, fingerprint: str, others: str
    ) -> FingerprintMismatchError:
        return FingerprintMismatchError(
            f"{path} and the other parts of {self.folder} differ in the layer {name}: its "
            f"fingerprint is {fingerprint[:12]}..., theirs {others[:12]}.... All parts are made "
            "with one network and the same options; leave the options out, or give another -o"
        )

    def _has_all_layers(self, cache: FeatureCache) -> bool:
        return {spec.key for spec in self.setup.layers} == cache.layers.keys()

    def _register_layers(self, path: Path) -> None:
        infos = self.setup.describe_layers(self.setup.layers)
        fingerprints = {info.name: info.fingerprint for info in infos}
        index = self._read_index()
        if dict(index.fingerprints) == fingerprints:
            return
        register_layers(
            self.folder,
            fingerprints,
            lambda name, others: self._explain_mismatch(path, name, fingerprints[name], others),
        )

    def _is_untouched(self, cache: FeatureCache, keys: KeyRange) -> bool:
        """Tell quickly whether a part is complete; False where it takes a closer look."""
        if self.request.retry.rehash or not self._has_all_layers(cache):
            return False
        left = partial_path(cache.path), in_flight_path(cache.path)
        if any(path.exists() for path in left) or not has_label_files(cache):
            return False
        pending = find_pending_rows(cache, np.ones(cache.n_rows, bool), self.request.retry)
        return not len(pending.compute) and self.images.is_unchanged(keys, cache)

    def _refuse_removal(
        self, listing: ImageListing, cache: FeatureCache, diff: ListingDiff
    ) -> None:
        """Refuse to remove too many rows of a part, and of all."""
        own_limit = MAX_VANISHED_SHARE * cache.n_rows
        if not self.request.prune and diff.n_vanished > own_limit:
            left = MAX_VANISHED_SHARE * self._count_all() - self._n_removed
            refuse_mass_removal(listing, cache, diff, max(0.0, left - own_limit))
        self._n_removed += diff.n_vanished

    def _drop_part(
        self, path: Path, cache: FeatureCache | None, lock: WriteLock, error: NoImagesError
    ) -> None:
        """Give the range of a part that has no images to its neighbour."""
        if cache is not None and not self.request.prune:
            self._check_loss(cache.n_rows, cache.paths[0])
        lock.require_held()
        if not drop_part(self.folder, path.name):
            raise error
        self.request.say(f"{path.name} is no part any more: {error}")
        self._n_removed += 0 if cache is None else cache.n_rows
        self.tallies.parts.pop(path.name, None)

    def _count_elsewhere(self, n_rows: int) -> int:
        """Estimate how many images this process will run in further parts."""
        return max(0, self.progress.n_left - n_rows) // self.rank.world_size

    def summarise(self, seconds: float) -> Summary:
        """Summarise the run.

        Parameters
        ----------
        seconds : float
            Its wall-clock time.

        Returns
        -------
        Summary
        """
        return self.tallies.summarise(self._read_index(), self.stats, seconds)

    def make_stop_error(self, seconds: float) -> RunInterruptedError:
        """Make the error of a run that was stopped; it counts what is done in all parts.

        Parameters
        ----------
        seconds : float
            Its wall-clock time.

        Returns
        -------
        RunInterruptedError
        """
        message = "stopped before anything was written"
        summary = Summary(str(self.folder), seconds=seconds)
        with suppress(HeadgraftError, OSError):
            summary = self.summarise(seconds)
            parts = summary.parts or {}
            n_done = summary.reused + summary.computed + summary.failed
            message = (
                f"stopped; {n_done:,} of {summary.rows:,} rows are done and kept in "
                f"{self.folder}/, {parts['completed']:,} of {parts['total']:,} parts are complete. "
                "The same command goes on from there"
            )
        return RunInterruptedError(message, replace(summary, verdict=message).to_dict())


def _identify(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written or replaced; None if there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
