"""The one drawing of progress, on stderr: a bar on a terminal, a line now and then in a log."""

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
    """Draws how long work goes; a context, after which the bar is gone.

    Parameters
    ----------
    stage : str
        What goes on until the first report. Without it the bar comes with the first report.

    Attributes
    ----------
    is_terminal : bool
        Whether there is a bar; else lines are printed.
    """

    def __init__(self, stage: str = "") -> None:
        self.is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._stage, self._done, self._total = stage, 0, 0
        self._start = (0.0, 0)  # when the current count began, and how much was done then
        self._next_at: float | None = None  # when to draw again; a log's clock starts at a report
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
        """Show that a stage has begun which does not report how far it is."""
        self._stage = stage
        if self.is_terminal:
            self._draw(stage, 0, None)

    def report(self, step: Progress) -> None:
        """Show how far a stage is, if it is time to."""
        now, stage = time.monotonic(), self._stage
        if step.total != self._total or step.done < self._done:
            self._start = (now, step.done)
        self._stage, self._done, self._total = step.stage, step.done, step.total
        if self._next_at is None:
            self._next_at = now + (0.0 if self.is_terminal else LINE_SECONDS)
        if now < self._next_at and (step.stage == stage or not self.is_terminal):
            return
        started, done = self._start
        fresh = step.done - done
        left = (step.total - step.done) * (now - started) / fresh if fresh else None
        if self.is_terminal:
            self._next_at = now + REDRAW_SECONDS
            self._draw(format_line(step, left), step.done, step.total)
        elif step.done < step.total:
            self._next_at = now + LINE_SECONDS
            print_stderr(format_line(step, left))

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar."""
        if self._bar is None:
            print_stderr(text)
        else:
            self._bar.console.print(make_text(text), soft_wrap=True)

    def _draw(self, text: str, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.add_task("", total=None)
            self._bar.start()
        room = self._bar.console.width - _bar_width(self._bar.console) - len("* ") - len(" ")
        line = to_printable(text)[:room]
        self._bar.update(self._bar.task_ids[0], description=line, completed=done, total=total)


def _make_bar() -> "Bar":
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    screen = make_console(stderr=True)
    one_line = Column(no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        BarColumn(_bar_width(screen)),
        TextColumn("{task.description}", markup=False, table_column=one_line),
        console=screen,
        transient=True,
        refresh_per_second=5,
        # What children and libraries write must not wait for this thread's lock.
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _bar_width(screen: "Console") -> int:
    """The bar's columns: an eighth of the terminal's, so that the words have room."""
    return min(MAX_BAR_WIDTH, screen.width // 8)


def format_line(step: Progress, seconds_left: float | None) -> str:
    """Format how far a stage is: ``heads: 3 of 12, 9 s left, t: softmax on layer4 0.912``."""
    left = "" if seconds_left is None else f"{format_duration(seconds_left)} left"
    parts = (f"{step.stage}: {step.done:,} of {step.total:,}", left, step.note)
    return ", ".join(part for part in parts if part)
