"""Progress: one line drawn over again on a terminal; in a log a few lines, in a notebook too."""

import os
import pty
import subprocess
import sys
from itertools import pairwise

import pytest

from featurize.cli import progress as progress_module
from featurize.cli.progress import ProgressDisplay, format_line
from featurize.progress import Step


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def run_hours(clock, display, *, hours: int, stages: int) -> None:
    """Report each second."""
    n = hours * 3600 // stages
    for stage in range(stages):
        for done in range(1, n + 1):
            clock.now += 1
            display.report(Step(f"stage {stage}", done, n, "a note\x1b[31m"))


def test_a_log_has_its_first_line_soon_then_at_growing_intervals(clock, capsys):
    start = clock.now
    times = []
    with ProgressDisplay("loading") as display:
        assert not display.is_terminal
        for done in range(1, 7200):
            clock.now += 1
            display.report(Step("heads", done, 7200))
            if capsys.readouterr().err:
                times.append(clock.now - start)
    assert times[0] <= 10
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 30
    assert gaps == sorted(gaps)
    assert gaps[-1] == 600


@pytest.mark.parametrize("stages", [1, 10, 720])
def test_a_log_never_has_more_than_some_tens_of_lines_an_hour(clock, capsys, stages):
    with ProgressDisplay() as display:
        run_hours(clock, display, hours=1, stages=stages)
        first_hour = capsys.readouterr().err.splitlines()
        assert 5 <= len(first_hour) <= 40
        run_hours(clock, display, hours=2, stages=2 * stages)
    assert 10 <= len(capsys.readouterr().err.splitlines()) <= 20


def test_the_end_of_a_stage_is_a_line_where_its_start_was_one(clock, capsys):
    with ProgressDisplay() as display:
        for done in range(1, 9):
            clock.now += 1
            display.report(Step("heads", done, 8, "ncm\x1b[31m"))
            display.report(Step("heads", done, 8, "ncm\x1b[31m"))
        display.report(Step("of a moment", 1, 2))
        display.report(Step("of a moment", 2, 2))
        display.say("a sentence")
    assert capsys.readouterr().err.splitlines() == [
        "heads: 6 of 8, 2 s left, ncm\\x1b[31m",
        "heads: all 8 in 7 s, ncm\\x1b[31m",
        "a sentence",
    ]


def test_the_time_to_the_limit_is_said(clock, capsys):
    with ProgressDisplay(deadline=clock.now + 90) as display:
        for done in range(1, 10):
            clock.now += 2
            display.report(Step("embedding", done, 100))
    assert "1:22 to the time limit" in capsys.readouterr().err
    assert format_line(Step("heads", 1, 3), 9.0, 30.0) == (
        "heads: 1 of 3, 9 s left, 30 s to the time limit"
    )


@pytest.mark.parametrize(
    ("variable", "draws"), [("JPY_PARENT_PID", False), ("TERM=dumb", False), ("", True)]
)
def test_a_notebook_gets_no_escapes_though_it_gives_a_terminal(variable, draws):
    """Jupyter runs a command on a terminal of its own, and shows its lines one below the other."""
    code = (
        "import featurize.cli.progress as p; from featurize.progress import Step\n"
        "p.FIRST_LINE_SECONDS = 0.0\n"
        "with p.ProgressDisplay('loading') as display:\n"
        "    for done in range(1, 4): display.report(Step('heads', done, 3))\n"
        "    display.say('a sentence')\n"
    )
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "JPY_PARENT_PID"}
    name, _, value = variable.partition("=")
    environment |= {"TERM": "xterm"} | ({name: value or "1"} if name else {})
    process = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment)
    os.close(theirs)
    said = os.read(ours, 65536)
    os.close(ours)
    assert process.returncode == 0, said
    assert (b"\x1b" in said) is draws
    assert b"a sentence" in said
    assert draws or said.splitlines()[0] == b"heads: 1 of 3"
