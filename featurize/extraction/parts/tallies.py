"""What a run over parts has found and done so far: counts, the summary, progress and sentences."""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurize.cache.format import FAILED, PENDING
from featurize.cache.parts.index import PartsIndex
from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.label_table import label_table_path
from featurize.extraction.summary import Summary
from featurize.pipeline.stats import RunStats
from featurize.sources.folder import FOLDER
from featurize.text import format_count

MAX_LISTED_FAILURES = 10_000  # of all parts together, in a summary
MAX_PARTS_NAMED = 2  # in sentences of one kind
_PART_NAME = re.compile(r"part-\d+\.h5")


@dataclass(frozen=True)
class PartTally:
    """Rows of one part.

    Attributes
    ----------
    n_rows, n_pending, n_failed : int
    is_complete : bool
        Whether this process has completed it, or found it complete.
    """

    n_rows: int
    n_pending: int
    n_failed: int
    is_complete: bool = False

    @classmethod
    def of(cls, cache: FeatureCache, *, is_complete: bool = False) -> "PartTally":
        """Count the rows of a part.

        Parameters
        ----------
        cache : FeatureCache
        is_complete : bool

        Returns
        -------
        PartTally
        """
        status = cache.status
        n_pending, n_failed = int((status == PENDING).sum()), int((status == FAILED).sum())
        return cls(cache.n_rows, n_pending, n_failed, is_complete)


@dataclass
class Tallies:
    """Counts over all parts.

    Attributes
    ----------
    folder : Path
        The cache of parts.
    parts : dict of str to PartTally
        By file, of those looked at so far.
    n_changed : int
        Parts that this process has changed.
    busy : list of str
        Files in the hands of other processes.
    """

    folder: Path
    parts: dict[str, PartTally] = field(default_factory=dict)
    n_changed: int = 0
    busy: list[str] = field(default_factory=list)

    def look_at(self, file: str) -> None:
        """Count the rows of a part that was not looked at, if it was made.

        Parameters
        ----------
        file : str
        """
        if file not in self.parts and (self.folder / file).exists():
            self.parts[file] = PartTally.of(FeatureCache(self.folder / file))

    @property
    def n_rows(self) -> int:
        """Rows of the parts looked at."""
        return sum(tally.n_rows for tally in self.parts.values())

    @property
    def n_complete(self) -> int:
        """Parts that this process has completed, or found complete."""
        return sum(tally.is_complete for tally in self.parts.values())

    def summarise(
        self, index: PartsIndex, stats: RunStats, seconds: float, *, until: float = float("inf")
    ) -> Summary:
        """Summarise the run; every part that was made is looked at.

        Parameters
        ----------
        index : PartsIndex
        stats : RunStats
        seconds : float
            Wall-clock time of the run.
        until : float
            A time of `time.monotonic` in seconds; after it no further part is looked at, and only
            those that were are counted.

        Returns
        -------
        Summary
            Its failures are the first `MAX_LISTED_FAILURES`.
        """
        files = [part.file for part in index.parts]
        self.parts = {file: tally for file, tally in self.parts.items() if tally.is_complete}
        for file in files:
            if time.monotonic() < until:
                self.look_at(file)
        tallies = [self.parts[file] for file in files if file in self.parts]
        made = [file for file in files if file in self.parts]
        n_failed, n_pending = (
            sum(getattr(tally, name) for tally in tallies) for name in ("n_failed", "n_pending")
        )
        n_rows = sum(tally.n_rows for tally in tallies)
        has_labels = any(label_table_path(self.folder / file).exists() for file in made)
        summary = Summary(
            cache=str(self.folder),
            rows=n_rows,
            computed=stats.computed,
            reused=max(n_rows - n_failed - n_pending - stats.computed, 0),
            failed=n_failed,
            seconds=seconds,
            failures=self._list_failures(made, until),
            labels=str(self.folder / "part-*.h5.labels.csv") if has_labels else "",
            parts={
                "total": len(files),
                "completed": self.n_complete,
                "by_this_process": self.n_changed,
                "busy": len(self.busy),
            },
        )
        if made:
            cache = FeatureCache(self.folder / made[0])
            summary.layers = list(cache.layers)
            summary.source = str(cache.source.get("kind", FOLDER))
        summary.describe_work(stats)
        if self.busy:
            summary.verdict += (
                f" {format_count(len(self.busy), 'part')} of {len(files):,} "
                f"{'is' if len(self.busy) == 1 else 'are'} in the hands of other processes."
            )
        return summary

    def _list_failures(self, made: list[str], until: float) -> dict[str, str]:
        failures: dict[str, str] = {}
        for file in made:
            is_enough = len(failures) >= MAX_LISTED_FAILURES or time.monotonic() > until
            if self.parts[file].n_failed and not is_enough:
                failures |= FeatureCache(self.folder / file).failures
        return dict(list(failures.items())[:MAX_LISTED_FAILURES])


class WholeProgress:
    """Reports rows of the whole, where a run goes from part to part.

    Parameters
    ----------
    report : callable
        Called with `RunStats` whose `done` and `total` are rows of all parts.
    n_rows : int
        Of all parts, about.
    """

    def __init__(self, report: Callable[[RunStats], None], n_rows: int) -> None:
        self._report, self._n_rows = report, n_rows
        self._n_before = 0  # rows of earlier parts
        self._part: tuple[int, int, int] | None = None  # its rows, `total` and `done` before it

    @property
    def n_left(self) -> int:
        """Rows of the parts that were not passed, about."""
        return max(0, self._n_rows - self._n_before)

    def begin_part(self, n_rows: int, stats: RunStats) -> None:
        """Begin a part.

        Parameters
        ----------
        n_rows : int
            Of the part.
        stats : RunStats
        """
        self._part = n_rows, stats.total, stats.done

    def end_part(self, n_rows: int) -> None:
        """Count a part as done.

        Parameters
        ----------
        n_rows : int
            Of the part.
        """
        self._n_before, self._part = self._n_before + n_rows, None

    def report(self, stats: RunStats) -> None:
        """Report rows of the whole.

        Parameters
        ----------
        stats : RunStats
            Of the run.
        """
        done = self._n_before
        if self._part is not None:
            n_rows, total, done_before = self._part
            n_left = (stats.total - total) - (stats.done - done_before)
            done += max(0, n_rows - n_left)
        # The number of rows is an estimate where containers are not opened yet.
        self._report(replace(stats, done=done, total=max(self._n_rows, done)))


class OnceSaid:
    """Passes each sentence on once; of those that name a part, the first few of each kind.

    Parameters
    ----------
    say : callable
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: Counter[str] = Counter()

    def __call__(self, sentence: str) -> None:
        """Pass a sentence on, unless it was said.

        Parameters
        ----------
        sentence : str
        """
        names_part = _PART_NAME.search(sentence) is not None
        kind = re.sub(r"\d+", "", sentence) if names_part else sentence
        self._said[kind] += 1
        if self._said[kind] <= (MAX_PARTS_NAMED if names_part else 1):
            self._say(sentence)
        elif names_part and self._said[kind] == MAX_PARTS_NAMED + 1:
            self._say(f"{sentence}; further parts are not named")
