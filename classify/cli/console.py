"""How the command line talks: JSON on stdout; progress, notes and errors on stderr."""

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from classify.errors import ClassifyError
from classify.heads.record import HeadResult
from featurize.errors import FeaturizeError, RunInterruptedError
from featurize.system import signals
from featurize.text import to_printable

INPUT_ERRORS = (
    ClassifyError,
    FeaturizeError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
EXIT_UNEXPECTED, EXIT_WRONG_INPUT, EXIT_INCOMPLETE = 1, 2, 3
PIPED_WIDTH = 100
MAX_MESSAGE_CHARS = 20_000  # characters of a message
PROGRESS_INTERVAL_SECONDS = 5.0  # between two lines of progress where there is no terminal


def make_console(*, stderr: bool) -> Console:
    """A console for stdout or stderr; 100 columns wide where it is no terminal."""
    # Names of files and labels are data: neither markup nor highlighting is read into them.
    screen = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = PIPED_WIDTH
    return screen


@contextmanager
def handle_errors(debug: bool) -> Iterator[None]:
    """Turn what goes wrong in a verb into one line on stderr and an exit status."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        signals.acknowledge()
        _exit_with_error(
            "interrupted; what was finished is kept, and the same command goes on from there",
            EXIT_INCOMPLETE,
            debug,
        )
    except RunInterruptedError as error:
        _exit_with_error(str(error), EXIT_INCOMPLETE, debug)
    except INPUT_ERRORS as error:
        _exit_with_error(str(error), EXIT_WRONG_INPUT, debug)
    except Exception as error:
        if signals.was_received():  # an interrupted import may end as any exception
            raise KeyboardInterrupt from error
        hint = "" if debug else "; --debug shows the traceback"
        _exit_with_error(
            f"unexpected {type(error).__name__}: {error}{hint}", EXIT_UNEXPECTED, debug
        )


def _exit_with_error(message: str, status: int, debug: bool) -> None:
    if debug:
        for line in traceback.format_exc().splitlines():
            print(to_printable(line, MAX_MESSAGE_CHARS), file=sys.stderr)
    print(f"error: {to_printable(message, MAX_MESSAGE_CHARS)}", file=sys.stderr)
    raise typer.Exit(status)


def show_notices(notices: Iterable[str]) -> None:
    """What the user should know, on stderr."""
    for notice in notices:
        make_console(stderr=True).print(
            f"note: {to_printable(notice, MAX_MESSAGE_CHARS)}", style="yellow", soft_wrap=True
        )


def make_text(text: object, style: str = "") -> Text:
    """Text that holds a stranger's names, as it may go to a terminal."""
    return Text(to_printable(text, MAX_MESSAGE_CHARS), style)


def open_csv_stdout() -> TextIO:
    """Standard output for a table: UTF-8, as in a file, unless it is a terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def show_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal."""
    with make_console(stderr=True).status(make_text(what)):
        yield


@contextmanager
def progress_bar() -> Iterator[Callable[[HeadResult, int, int], None]]:
    """A bar on stderr that goes away at the end; without a terminal, a line now and then."""
    screen = make_console(stderr=True)
    if not screen.is_terminal:
        yield _make_line_progress(screen)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("heads"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    latest = TextColumn("{task.fields[latest]}", markup=False)
    with Progress(*columns, latest, console=screen, transient=True) as bar:
        task = bar.add_task("heads", total=None, latest="")

        def advance(record: HeadResult, done: int, total: int) -> None:
            latest = to_printable(
                f"{record.task}: {record.head} {format_number(record.validation)}"
            )
            bar.update(task, completed=done, total=total, latest=latest)

        yield advance


class StageProgress:
    """Shows how something long goes, stage by stage: a bar on a terminal, else a line at times."""

    def __init__(self, screen: Console, bar: Any, what: str) -> None:
        self._screen, self._bar, self._epochs = screen, bar, 0
        self._next = time.monotonic() + PROGRESS_INTERVAL_SECONDS
        self._task = bar.add_task(what, total=None, latest="")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self._screen.print(make_text(text), soft_wrap=True)

    def run(self, measure: Any) -> None:
        """For `featurize.run`: takes its `Measure`."""
        self._show("embedding", measure.done, measure.total)

    def heads(self, record: HeadResult, done: int, total: int) -> None:
        """For `compare`."""
        self._show("heads", done, total, f"{record.head} on {record.layer}")

    def training(self, step: Any) -> None:
        """For `finetune`: takes its `Step`."""
        latest = ""
        if step.history:
            last = step.history[-1]
            latest = f"validation {last.validation:.3f}, loss {last.validation_loss:.3f}"
            if last.number != self._epochs and not self._screen.is_terminal:
                self.say(f"epoch {last.number}: {latest}, {last.seconds:.0f} s")
            self._epochs = last.number
        self._show(step.stage, step.done, step.total, latest)

    def _show(self, what: str, done: int, total: int, latest: str = "") -> None:
        self._bar.update(
            self._task, description=what, completed=done, total=total, latest=to_printable(latest)
        )
        if not self._screen.is_terminal and time.monotonic() > self._next and done < total:
            self._next = time.monotonic() + PROGRESS_INTERVAL_SECONDS
            self.say(f"{what}: {done:,} of {total:,}")


@contextmanager
def stage_progress(what: str) -> Iterator[StageProgress]:
    """A bar on stderr for something of several stages; it goes away at the end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    latest = TextColumn("{task.fields[latest]}", markup=False)
    with Progress(
        *columns, latest, console=screen, transient=True, disable=not screen.is_terminal
    ) as bar:
        yield StageProgress(screen, bar, what)


def _make_line_progress(screen: Console) -> Callable[[HeadResult, int, int], None]:
    started = last = time.monotonic()

    def advance(record: HeadResult, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL_SECONDS:
            last = now
            screen.print(f"{done} of {total} heads, {now - started:.0f} s")

    return advance


def format_number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
