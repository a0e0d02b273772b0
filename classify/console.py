"""How the command line talks: JSON on stdout; progress, notes and errors on stderr."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from classify.errors import ClassifyError
from classify.records import Record
from featurize.errors import FeaturizeError

INPUT_ERRORS = (
    ClassifyError,
    FeaturizeError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
UNEXPECTED, WRONG_INPUT, INCOMPLETE = 1, 2, 3
PIPED_WIDTH = 100
LINE_SECONDS = 5.0  # between two lines of progress where there is no terminal


def console(*, stderr: bool) -> Console:
    """A console for stdout or stderr; 100 columns wide where it is no terminal."""
    # Names of files and labels are data: neither markup nor highlighting is read into them.
    screen = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = PIPED_WIDTH
    return screen


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Turn what goes wrong in a verb into one line on stderr and an exit status."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _fail(
            "interrupted; what was finished is kept, and the same command goes on from there",
            INCOMPLETE,
            debug,
        )
    except INPUT_ERRORS as error:
        _fail(str(error), WRONG_INPUT, debug)
    except Exception as error:
        hint = "" if debug else "; --debug shows the traceback"
        _fail(f"unexpected {type(error).__name__}: {error}{hint}", UNEXPECTED, debug)


def _fail(message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(status)


def show_notes(notices: Iterable[str]) -> None:
    """What the user should know, on stderr."""
    for notice in notices:
        console(stderr=True).print(f"note: {notice}", style="yellow", soft_wrap=True)


def show_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal."""
    with console(stderr=True).status(Text(what)):
        yield


@contextmanager
def counting() -> Iterator[Callable[[Record, int, int], None]]:
    """A bar on stderr that goes away at the end; without a terminal, a line now and then."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _lines(screen)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("heads"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    latest = TextColumn("{task.fields[latest]}", markup=False)
    with Progress(*columns, latest, console=screen, transient=True) as bar:
        task = bar.add_task("heads", total=None, latest="")

        def advance(record: Record, done: int, total: int) -> None:
            latest = f"{record.task}: {record.head} {number(record.validation)}"
            bar.update(task, completed=done, total=total, latest=latest)

        yield advance


@contextmanager
def descending(what: str) -> Iterator[tuple[Callable[[str], None], Callable[[Any], None]]]:
    """For a network's training: prints what is said, and shows where it stands on stderr.

    Yields
    ------
    say : callable
        Takes a text.
    report : callable
        Takes a `classify.descent.Step`.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen, shown = console(stderr=True), [0]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    latest = TextColumn("{task.fields[latest]}", markup=False)
    with Progress(*columns, latest, console=screen, transient=True) as bar:
        task = bar.add_task(what, total=None, latest="")

        def say(text: str) -> None:
            screen.print(text, soft_wrap=True)
            bar.update(task, description="preparing")

        def report(step: Any) -> None:
            if len(step.history) > shown[0]:
                shown[0] = len(step.history)
                if not screen.is_terminal:
                    screen.print(f"epoch {shown[0]} of {step.epochs}: {_judged(step)}")
            done = (step.epoch - 1) * step.steps + step.done
            described = f"epoch {step.epoch} of {step.epochs}"
            bar.update(
                task,
                description=described,
                completed=done,
                total=step.epochs * step.steps,
                latest=_judged(step),
            )

        yield say, report


def _judged(step: Any) -> str:
    if not step.history:
        return ""
    last = step.history[-1]
    return f"validation {last.validation:.3f}, loss {last.validation_loss:.3f}"


def _lines(screen: Console) -> Callable[[Record, int, int], None]:
    started = last = time.monotonic()

    def advance(record: Record, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            screen.print(f"{done} of {total} heads, {now - started:.0f} s")

    return advance


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
