"""Display of progress on stderr: a bar on a terminal, a line now and then in a log."""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from featurize.cli.console import make_console, make_text, print_stderr
from featurize.progress import Progress
from featurize.text import format_duration, to_printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

REDRAW_SECONDS = 0.1
FIRST_LINE_SECONDS = 5.0  # from the start of a stage to its first line in a log
LINE_SECONDS, MAX_LINE_SECONDS = 30.0, 600.0  # between lines of a log: doubled after each
MAX_FREE_LINES = 20  # lines for starts and ends of stages; later ones wait for their time
MAX_BAR_WIDTH = 20  # columns


class _LogSchedule:
    """When the next line of a log is due: soon in a stage, then at growing intervals."""

    def __init__(self) -> None:
        self._interval = LINE_SECONDS
        self._n_lines = 0
        self._is_told = False  # whether the stage had a line, and no end yet
        self._next_at: float | None = None  # when the next line is due at the latest
        self._first_at: float | None = None  # when the first line of the stage is; None after it

    def begin_stage(self, now: float) -> None:
        """Plan the first line of a stage."""
        self._first_at, self._is_told = now + FIRST_LINE_SECONDS, False
        if self._next_at is None:
            self._next_at = now + LINE_SECONDS

    def end_stage(self) -> bool:
        """Tell whether the stage had a line, and so its end deserves one; only once."""
        was_told, self._is_told = self._is_told, False
        return was_told

    def is_free(self, now: float) -> bool:
        """Tell whether one more line would not be too many."""
        return self._n_lines < MAX_FREE_LINES or self._is_late(now)

    def is_due(self, now: float) -> bool:
        """Tell whether a line is due, for a stage that goes on."""
        is_first = self._first_at is not None and now >= self._first_at
        return self._is_late(now) or (is_first and self.is_free(now))

    def count_line(self, now: float, *, ends_stage: bool = False) -> None:
        """Count a line that was printed, and plan the next one."""
        self._n_lines += 1
        self._first_at, self._next_at = None, now + self._interval
        self._is_told = not ends_stage
        self._interval = min(2 * self._interval, MAX_LINE_SECONDS)

    def _is_late(self, now: float) -> bool:
        return self._next_at is not None and now >= self._next_at


def can_redraw() -> bool:
    """Tell whether stderr shows a line that is drawn over again, as terminals do.

    A notebook runs commands on a terminal of its own but shows what they write one below the
    other. It is known by a variable of Jupyter's, which its commands inherit.

    Returns
    -------
    bool
    """
    is_plain = os.environ.get("TERM") == "dumb" or "JPY_PARENT_PID" in os.environ
    return sys.stderr.isatty() and not is_plain


class ProgressDisplay:
    """A progress bar as a context. The bar is removed when the context ends.

    Parameters
    ----------
    stage : str
        The stage until the first report. By default the bar appears with the first report.
    deadline : float, optional
        A time of `time.monotonic`, in seconds, when the work has to be done. What is left until
        then is shown.

    Attributes
    ----------
    is_terminal : bool
        Whether a bar is drawn. Otherwise lines are printed.
    """

    def __init__(self, stage: str = "", deadline: float | None = None) -> None:
        self.is_terminal = can_redraw()
        self._deadline = deadline
        self._stage, self._done, self._total = stage, 0, 0
        self._start = (0.0, 0)  # time and count at the start of the current stage
        self._redraw_at = 0.0
        self._log = _LogSchedule()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if self._stage:
            self.begin(self._stage)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, stage: str) -> None:
        """Show a stage that does not report how far it is.

        Parameters
        ----------
        stage : str
            What is done.
        """
        self._stage = stage
        if self.is_terminal:
            self._draw(stage, 0, None)

    def report(self, step: Progress) -> None:
        """Show how far a stage is, unless the last update was a moment ago.

        Parameters
        ----------
        step : Progress
            The stage, and how much of it is done.
        """
        now, stage = time.monotonic(), self._stage
        if step.total != self._total or step.done < self._done:
            self._start = (now, step.done)
            self._log.begin_stage(now)
        self._stage, self._done, self._total = step.stage, step.done, step.total
        if self.is_terminal:
            if now >= self._redraw_at or step.stage != stage:
                self._redraw_at = now + REDRAW_SECONDS
                self._draw(self._format(step, now), step.done, step.total)
        elif step.done < step.total and self._log.is_due(now):
            print_stderr(self._format(step, now))
            self._log.count_line(now)
        elif step.done == step.total and self._log.end_stage():
            self.say_milestone(self.describe_end(step, now - self._start[0]))

    def describe_end(self, step: Progress, seconds: float) -> str:
        """Describe in a log that a stage is done.

        Parameters
        ----------
        step : Progress
            The last one of the stage.
        seconds : float
            How long the stage took.

        Returns
        -------
        str
            A line, or nothing to be printed.
        """
        return ", ".join(
            filter(
                None, (f"{step.stage}: all {step.total:,} in {format_duration(seconds)}", step.note)
            )
        )

    def _format(self, step: Progress, now: float) -> str:
        start_time, start_done = self._start
        n_new = step.done - start_done
        seconds_left = (step.total - step.done) * (now - start_time) / n_new if n_new else None
        limit = None if self._deadline is None else max(0.0, self._deadline - now)
        return format_line(step, seconds_left, limit)

    def say_milestone(self, text: str) -> None:
        """Print in a log that a part of the work is done, unless it had many such lines lately.

        Parameters
        ----------
        text : str
            What is done, and what came of it.
        """
        now = time.monotonic()
        if text and not self.is_terminal and self._log.is_free(now):
            print_stderr(text)
            self._log.count_line(now, ends_stage=True)

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar.

        Parameters
        ----------
        text : str
            A sentence for the user.
        """
        if self._bar is None:
            print_stderr(text)
        else:
            self._bar.console.print(make_text(text), soft_wrap=True)

    def _draw(self, text: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.add_task("", total=None)
            self._bar.start()
        max_chars = self._bar.console.width - _bar_width(self._bar.console) - len("* ") - len(" ")
        line = to_printable(text)[:max_chars]
        self._bar.update(
            self._bar.task_ids[0], description=line, completed=done, total=total, refresh=True
        )


def _make_bar() -> "Bar":
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    console = make_console(stderr=True)
    single_line = Column(no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        BarColumn(_bar_width(console)),
        TextColumn("{task.description}", markup=False, table_column=single_line),
        console=console,
        transient=True,
        refresh_per_second=5,
        # Output of child processes and libraries must not wait for the bar's lock.
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _bar_width(console: "Console") -> int:
    """Return the bar's width in columns: an eighth of the terminal, to leave room for text."""
    return min(MAX_BAR_WIDTH, console.width // 8)


def format_line(step: Progress, seconds_left: float | None, limit: float | None = None) -> str:
    """Format how far a stage is: ``heads: 3 of 12, 9 s left, t: softmax on layer4 0.912``.

    Parameters
    ----------
    step : Progress
        The stage, and how much of it is done.
    seconds_left : float, or None
        Until the stage is done. Left out if None.
    limit : float, optional
        Seconds until the time limit, if there is one.

    Returns
    -------
    str
    """
    left = "" if seconds_left is None else f"{format_duration(seconds_left)} left"
    until_limit = "" if limit is None else f"{format_duration(limit)} to the time limit"
    parts = (f"{step.stage}: {step.done:,} of {step.total:,}", left, until_limit, step.note)
    return ", ".join(part for part in parts if part)
