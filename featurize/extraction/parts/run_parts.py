"""One run on a cache of parts: plan, then complete the parts that no other process holds."""

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featurize.cache.parts.index import (
    DEFAULT_PART_ROWS,
    PartsIndex,
    has_index,
    read_index,
)
from featurize.cache.reader import FeatureCache
from featurize.errors import (
    CacheBusyError,
    CallError,
    FingerprintMismatchError,
    HeadgraftError,
    RunInterruptedError,
)
from featurize.extraction.completion.listed_images import open_images, resolve_globs
from featurize.extraction.completion.partial_cache import open_if_exists
from featurize.extraction.dry_run import Estimate
from featurize.extraction.options import is_same_extractor, resolve_options
from featurize.extraction.parts.estimate import estimate_parts
from featurize.extraction.parts.part_completion import PartCompletion
from featurize.extraction.parts.part_images import KeyRange, open_part_images
from featurize.extraction.parts.planning import (
    IndexReader,
    extend_index,
    make_index,
    plan_parts,
    record_globs,
    retract_parts,
)
from featurize.extraction.parts.process_rank import ProcessRank
from featurize.extraction.parts.removals import Removals
from featurize.extraction.parts.tallies import OnceSaid, Tallies
from featurize.extraction.request import RunRequest
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.single_cache import (
    KEEP_ADVICE,
)
from featurize.extraction.summary import Summary
from featurize.layer_spec import LayerSpec
from featurize.pipeline.stats import RunStats
from featurize.sources.opening import describe_source
from featurize.system import cpu, signals
from featurize.text import format_count

STOP_SECONDS = 1.0  # for counting rows after an interrupt; see `signals.MAX_EXIT_SECONDS`


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
        self._index_reader = IndexReader(folder)

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
        setup = self._make_setup()
        if self.template is None:
            # Load the network before anything is made, which would stay if it is mistyped.
            setup.describe_layers(setup.layers)
        if self.index is None:
            index = make_index(self.folder, index)
        removals = Removals(self.tallies, self.images, self._index_reader, self.request.prune)
        removals.refuse_gone_parts(index)
        index = extend_index(self.folder, index, self.images, self.request.part_rows)
        self._say_plan(index)
        completion = PartCompletion(
            self.images,
            setup,
            self.request,
            self.stats,
            self.tallies,
            removals,
            self._index_reader,
            self.rank.world_size,
        )
        try:
            self._go_through(index, completion)
        except (CallError, FingerprintMismatchError):  # refused
            known = {part.file for part in self.index.parts} if self.index else set()
            added = [part.file for part in index.parts if part.file not in known]
            retract_parts(self.folder, added if known else [])
            raise
        # Not before: a run that is refused leaves them as they were.
        record_globs(self.folder, self.globs)

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
            computes_here=request.session is None,
        )
        if template is not None and (
            request.custom_backbone or not is_same_extractor(resolved, request.options, template)
        ):
            _ = setup.backbone  # raises for another extractor, before anything is written
        return setup

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

    def _go_through(self, index: PartsIndex, completion: PartCompletion) -> None:
        """Go through the parts, and again through those that were busy, until none is free."""
        waiting, seen = self.rank.order([part.file for part in index.parts]), set[str]()
        while waiting:
            busy = []
            for file in waiting:
                try:
                    completion.complete(file)
                except CacheBusyError:
                    busy.append(file)
            seen |= set(waiting)
            added = [part.file for part in self._index_reader.read().parts if part.file not in seen]
            self.tallies.busy = busy
            if len(busy) == len(waiting) and not added:
                return
            waiting = [*busy, *added]

    def summarise(self, seconds: float, *, until: float = float("inf")) -> Summary:
        """Summarise the run.

        Parameters
        ----------
        seconds : float
            Its wall-clock time.
        until : float
            As for `Tallies.summarise`.

        Returns
        -------
        Summary
        """
        index = self._index_reader.read()
        return self.tallies.summarise(index, self.stats, seconds, until=until)

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
            summary = self.summarise(seconds, until=time.monotonic() + STOP_SECONDS)
            parts = summary.parts or {}
            n_done = summary.reused + summary.computed + summary.failed
            message = (
                f"stopped; {n_done:,} of {summary.rows:,} rows of the parts begun are done and "
                f"kept in {self.folder}/; {parts['completed']:,} of {parts['total']:,} parts are "
                "complete. The same command goes on from there"
            )
        return RunInterruptedError(message, replace(summary, verdict=message).to_dict())
