"""The leaderboard of one task, and its headline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from classify.checks.baseline import Baseline
from classify.heads.record import HeadResult, describe_place, rank_results, shorten_cache

BEST, EQUAL, WORSE, BASELINE = "best", "equal", "worse", "baseline"


@dataclass(frozen=True)
class LeaderboardRow:
    """One row of the leaderboard.

    Attributes
    ----------
    mark : str
        ``best``, ``equal`` (not distinguishable from the best), ``worse`` (corrected for the number
        of heads), ``baseline`` (no head: the majority class) or empty.
    record : HeadResult
    cache, layer : str
        The cache, empty where only one is compared, and the layers, short enough for table cells.
    setting : str
        The selected params, as ``C = 0.01``.
    bar : (float, float, float), or None
        Both ends of the interval, and the accuracy, scaled to 0 to 100 for the table's bars.
    """

    mark: str
    record: HeadResult
    cache: str
    layer: str
    setting: str
    bar: tuple[float, float, float] | None


@dataclass(frozen=True)
class Headline:
    """The best head of a task, and how it compares with the others.

    Attributes
    ----------
    best : HeadResult
    layer : str
        Its layers, and its cache where several are compared, short enough for a sentence.
    n_heads, n_equal, n_worse : int
        Number of all heads, of those not distinguishable from the best, and of those worse than it.
    baseline : Baseline
        What the majority class reaches.
    """

    best: HeadResult
    layer: str
    n_heads: int
    n_equal: int
    n_worse: int
    baseline: Baseline

    @property
    def head(self) -> str:
        """The best head in words: its name and its layers."""
        return f"{self.best.head} on {self.layer}"


def build_leaderboard(
    records: Sequence[HeadResult],
    best_record: HeadResult,
    baseline: Baseline,
    joined: Mapping[str, str],
) -> tuple[Headline, list[LeaderboardRow]]:
    """Build the headline of one task, and the rows of its leaderboard.

    Parameters
    ----------
    records : sequence of HeadResult
        All heads of the task.
    best_record : HeadResult
        One of them, selected by validation.
    baseline : Baseline
    joined : mapping of str to str
        Labels of joined layers, as `classify.data.sets.cache_set.label_joined_layers` returns them.

    Returns
    -------
    headline : Headline
    rows : list of LeaderboardRow
        By validation, the best first; the baseline last.
    """
    # A few poor heads would compress the other bars: the axis starts at the lower quartile.
    lows = sorted(record.accuracy_ci[0] for record in records if record.accuracy_ci)
    low = lows[len(lows) // 4] if lows else 0
    high = max((record.accuracy_ci[1] for record in records if record.accuracy_ci), default=1)
    width = max(high - low, 1e-9)
    rows = []
    for record in rank_results(records, best_record):
        mark = EQUAL if record.distinguishable is False else WORSE if record.worse else ""
        mark = BEST if record is best_record else mark
        bar = None
        if record.accuracy_ci is not None and record.accuracy is not None:
            left, right, middle = (
                round(max(0, 100 * (value - low) / width), 2)
                for value in (*record.accuracy_ci, record.accuracy)
            )
            bar = (left, right, middle)
        params = ", ".join(f"{name} = {value:g}" for name, value in record.settings.items())
        rows.append(
            LeaderboardRow(
                mark,
                record,
                shorten_cache(record.cache or ""),
                joined.get(record.place, record.layer),
                params,
                bar,
            )
        )
    n_heads = len(rows)
    rows.append(LeaderboardRow(BASELINE, _make_record(baseline, best_record), "", "–", "", None))
    n_equal, n_worse = (sum(row.mark == mark for row in rows) for mark in (EQUAL, WORSE))
    return Headline(
        best_record,
        describe_place(best_record.layer, best_record.cache, joined),
        n_heads,
        n_equal,
        n_worse,
        baseline,
    ), rows


def _make_record(baseline: Baseline, best: HeadResult) -> HeadResult:
    """Describe the baseline in the fields of a head, for the same columns."""
    return replace(
        best,
        head="majority class",
        layer="–",
        accuracy=baseline.accuracy,
        accuracy_ci=baseline.accuracy_ci,
        validation=baseline.validation,
        validation_ci=None,
        C=None,
        settings={},
        validation_metric=baseline.validation_metric,
        test_metric=baseline.test_metric,
        scores=baseline.scores,
        cache=None if best.cache is None else "–",
        columns=None,
        row_bytes=None,
        gmacs=None,
        distinguishable=None,
        worse=None,
    )


def format_percent(value: float | None) -> str:
    """Format a fraction as a percentage.

    Parameters
    ----------
    value : float or None
        0 to 1.

    Returns
    -------
    str
        0.9724 as ``97.2 %``; a dash for None.
    """
    return "–" if value is None else f"{100 * value:.1f}\u202f%"


def format_interval(ends: tuple[float, float] | None) -> str:
    """Format an interval in percent.

    Parameters
    ----------
    ends : (float, float) or None
        0 to 1.

    Returns
    -------
    str
        ``95.1 to 98.3 %``; a dash for None.
    """
    if ends is None:
        return "–"
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u202f%"


def format_decimal(value: float | None) -> str:
    """Format a number with three decimals.

    Parameters
    ----------
    value : float or None

    Returns
    -------
    str
        A dash for None.
    """
    return "–" if value is None else f"{value:.3f}"
