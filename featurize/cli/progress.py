"""The live line of a run, on stderr."""

import os
import sys
import time

from featurize.pipeline.stats import RunStats
from featurize.text import format_duration, to_printable


class ProgressLine:
    """Shows how a run goes: a live line on a terminal, a plain one now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._interval = 0.2 if self._is_terminal else 10.0
        self._next_at = time.monotonic() + (0.0 if self._is_terminal else 2.0)
        self._is_shown = False

    def __call__(self, stats: RunStats) -> None:
        """Show where the run is, if it is time to."""
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + self._interval
        text = format_progress(stats)
        if self._is_terminal:
            width = _get_terminal_width() - 1
            sys.stderr.write("\r\x1b[2K" + text[:width])
            sys.stderr.flush()
            self._is_shown = True
        else:
            self.print_line(text)

    def print_line(self, text: str) -> None:
        """Print a line of its own."""
        self.clear()
        print(to_printable(text, limit=10_000), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the live line."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._is_shown = False


def _get_terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


def format_progress(stats: RunStats) -> str:
    """Done, rate, time left, and the stages' share of the working time, in one line."""
    shares = "  ".join(f"{stage} {share:.0%}" for stage, share in stats.stage_shares.items())
    return (
        f"{stats.done:,} of {stats.total:,}  {stats.images_per_second:,.0f} images/s  "
        f"{format_duration(stats.seconds_left)} left  {shares}"
    )
