"""The live line of a run, on stderr."""

import os
import sys
import time

from featurize.measure import Measure
from featurize.text import shown


class Live:
    """Shows how a run goes: a live line on a terminal, a plain one now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._next = time.monotonic() + (0.0 if self._terminal else 2.0)
        self._shown = False

    def __call__(self, measure: Measure) -> None:
        """Show where the run is, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        text = line(measure)
        if self._terminal:
            width = _columns() - 1
            sys.stderr.write("\r\x1b[2K" + text[:width])
            sys.stderr.flush()
            self._shown = True
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.end()
        print(shown(text, limit=10_000), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the live line."""
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown = False


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


def line(measure: Measure) -> str:
    """Done, rate, time left, and the stages' share of the working time, in one line."""
    shares = "  ".join(f"{stage} {share:.0%}" for stage, share in measure.shares.items())
    return (
        f"{measure.done:,} of {measure.total:,}  {measure.images_per_second:,.0f} images/s  "
        f"{duration(measure.seconds_left)} left  {shares}"
    )


def duration(seconds: float | None) -> str:
    """``2:05:09``, ``5:09`` or ``9 s``; a dash where unknown."""
    if seconds is None:
        return "-"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
