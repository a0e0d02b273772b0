"""The leaderboard and the answer in one sentence: what is said in numbers of one task."""

from collections.abc import Sequence
from dataclasses import dataclass

from classify.heads.record import HeadResult, rank_results

BEST, EQUAL, WORSE = "best", "equal", "worse"
SCORES = ("balanced_accuracy", "macro_f1", "log_loss_scaled", "calibration_error_scaled")


@dataclass(frozen=True)
class LeaderboardRow:
    """One row of the leaderboard.

    Attributes
    ----------
    mark : str
        ``best``, ``equal`` (not distinguishable from it), ``worse`` (with as many heads as there
        are) or empty.
    record : HeadResult
    layer : str
        The layers, short enough for a cell.
    setting : str
        What was chosen, as ``C = 0.01``.
    bar : (float, float, float), or None
        Both ends of the interval, and the accuracy, as the table's bars show them: 0 to 100.
    """

    mark: str
    record: HeadResult
    layer: str
    setting: str
    bar: tuple[float, float, float] | None


@dataclass(frozen=True)
class Headline:
    """Which head is best for a task, how good it is, and how sure that is.

    Attributes
    ----------
    best : HeadResult
    layer : str
    n_heads, n_equal, n_worse : int
        Heads it was chosen from, and how many of the others cannot be told from it or are worse.
    """

    best: HeadResult
    layer: str
    n_heads: int
    n_equal: int
    n_worse: int


def abbreviate_layers(name: str, layers: Sequence[str]) -> str:
    """Joined layers in a word or two: all of a cache's are too many to be repeated."""
    count = name.count("+") + 1
    return f"all {count} joined" if count > 1 and name == "+".join(layers) else name


def build_leaderboard(
    records: Sequence[HeadResult], best_record: HeadResult, layers: Sequence[str]
) -> tuple[Headline, list[LeaderboardRow]]:
    """The answer for one task, and its heads from the best validation down.

    Parameters
    ----------
    records : sequence of HeadResult
        Of the task.
    best_record : HeadResult
        One of them, chosen by validation.
    layers : sequence of str
        All of the cache.
    """
    # A few hopeless heads would squeeze the others' bars to a dot: theirs are cut off at the left.
    lows = sorted(record.accuracy_ci[0] for record in records if record.accuracy_ci)
    low = lows[len(lows) // 4] if lows else 0
    high = max((record.accuracy_ci[1] for record in records if record.accuracy_ci), default=1)
    width = max(high - low, 1e-9)
    lines = []
    for record in rank_results(records, best_record):
        mark = EQUAL if record.distinguishable is False else WORSE if record.worse else ""
        mark = BEST if record is best_record else mark
        bar = None
        if record.accuracy_ci is not None and record.accuracy is not None:
            at = (*record.accuracy_ci, record.accuracy)
            bar = tuple(round(max(0, 100 * (value - low) / width), 2) for value in at)
        chosen = ", ".join(f"{name} = {value:g}" for name, value in record.settings.items())
        lines.append(
            LeaderboardRow(mark, record, abbreviate_layers(record.layer, layers), chosen, bar)  # type: ignore[arg-type]
        )
    equal, worse = (sum(line.mark == mark for line in lines) for mark in (EQUAL, WORSE))
    return Headline(
        best_record, abbreviate_layers(best_record.layer, layers), len(lines), equal, worse
    ), lines


def format_percent(value: float | None) -> str:
    """0.9724 as ``97.2 %``; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}\u202f%"


def format_interval(ends: tuple[float, float] | None) -> str:
    """Both ends in percent."""
    if ends is None:
        return "–"
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u202f%"


def format_decimal(value: float | None) -> str:
    """Three decimals; a dash for None."""
    return "–" if value is None else f"{value:.3f}"
