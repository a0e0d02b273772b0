"""Display of progress on stderr: a bar on a terminal, a line every ten seconds in a log."""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from featurize.cli.console import make_console, make_text, print_stderr
from featurize.progress import Progress
from featurize.text import format_duration, to_printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0
MAX_BAR_WIDTH = 20  # columns


class ProgressDisplay:
    """A progress bar as a context. The bar is removed when the context ends.

    Parameters
    ----------
    stage : str
        The stage until the first report. By default the bar appears with the first report.

    Attributes
    ----------
    is_terminal : bool
        Whether a bar is drawn. Otherwise lines are printed.
    """

    def __init__(self, stage: str = "") -> None:
        self.is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._stage, self._done, self._total = stage, 0, 0
        self._start = (0.0, 0)  # time and count at the start of the current stage
        self._next_at: float | None = None  # when to draw next; None before the first report
        self._bar: Bar | None = None

    def __enter__(self) -> "ProgressDisplay":
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
        self._stage, self._done, self._total = step.stage, step.done, step.total
        if self._next_at is None:
            self._next_at = now + (0.0 if self.is_terminal else LINE_SECONDS)
        if now < self._next_at and (step.stage == stage or not self.is_terminal):
            return
        start_time, start_done = self._start
        n_new = step.done - start_done
        seconds_left = (step.total - step.done) * (now - start_time) / n_new if n_new else None
        if self.is_terminal:
            self._next_at = now + REDRAW_SECONDS
            self._draw(format_line(step, seconds_left), step.done, step.total)
        elif step.done < step.total:
            self._next_at = now + LINE_SECONDS
            print_stderr(format_line(step, seconds_left))

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


def format_line(step: Progress, seconds_left: float | None) -> str:
    """Format how far a stage is: ``heads: 3 of 12, 9 s left, t: softmax on layer4 0.912``.

    Parameters
    ----------
    step : Progress
        The stage, and how much of it is done.
    seconds_left : float, or None
        Left out if None.

    Returns
    -------
    str
    """
    left = "" if seconds_left is None else f"{format_duration(seconds_left)} left"
    parts = (f"{step.stage}: {step.done:,} of {step.total:,}", left, step.note)
    return ", ".join(part for part in parts if part)
