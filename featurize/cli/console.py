"""Output of both command lines: results on stdout; progress, notes and errors on stderr.

Exit codes: 0 done, 1 unexpected, 2 the input or the call is wrong, 3 incomplete.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from featurize.errors import HeadgraftError, RunInterruptedError
from featurize.system import signals
from featurize.text import escape_unsafe_json, to_printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EXIT_DONE, EXIT_UNEXPECTED, EXIT_WRONG_INPUT, EXIT_INCOMPLETE = 0, 1, 2, 3
INPUT_ERRORS = (
    HeadgraftError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
PIPED_WIDTH = 100  # columns where stdout is not a terminal
MAX_MESSAGE_CHARS = 20_000


@contextmanager
def handle_errors(debug: bool, as_json: bool = False) -> Iterator[None]:
    """Turn the exception of a verb into one line on stderr and an exit code.

    Parameters
    ----------
    debug : bool
        Whether to print the traceback too.
    as_json : bool
        Whether stdout takes a JSON object. Then the summary of an interrupted run is printed.
        False by default.

    Yields
    ------
    None

    Raises
    ------
    typer.Exit
        With the exit code, if the verb has failed.
    """
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except RunInterruptedError as stop:
        signals.acknowledge()
        if as_json and stop.summary:
            print_json(stop.summary)
        _exit_with_message(str(stop), EXIT_INCOMPLETE, debug)
    except KeyboardInterrupt:
        signals.acknowledge()
        _exit_with_message(signals.EXIT_MESSAGE, EXIT_INCOMPLETE, debug)
    except BrokenPipeError:
        # The reader of stdout is gone. Python would fail again when it flushes stdout at exit.
        with Path(os.devnull).open("w") as devnull:
            os.dup2(devnull.fileno(), 1)
        raise typer.Exit(EXIT_UNEXPECTED) from None
    except INPUT_ERRORS as error:
        _exit_with_message(f"error: {error}", EXIT_WRONG_INPUT, debug)
    except Exception as error:
        if signals.was_received():  # an interrupted import may end as any exception
            raise KeyboardInterrupt from error
        hint = "" if debug else "; --debug shows the traceback"
        message = f"error: unexpected {type(error).__name__}: {error}{hint}"
        _exit_with_message(message, EXIT_UNEXPECTED, debug)


def _exit_with_message(message: str, code: int, debug: bool) -> None:
    if debug:
        for line in traceback.format_exc().splitlines():
            print_stderr(line)
    print_stderr(message)
    raise typer.Exit(code)


def print_stderr(text: str) -> None:
    """Print a line on stderr.

    Parameters
    ----------
    text : str
        Control characters in it are escaped. It is cut after `MAX_MESSAGE_CHARS`.
    """
    print(to_printable(text, MAX_MESSAGE_CHARS), file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout, as UTF-8 in any locale.

    Control characters are written as JSON escapes, so that a terminal does not obey them.

    Parameters
    ----------
    value : dict of str to object
        Without NaN and infinity.

    Raises
    ------
    ValueError
        If a number is NaN or infinite.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(escape_unsafe_json(json.dumps(value, ensure_ascii=False, allow_nan=False)))


def open_csv_stdout() -> TextIO:
    """Return stdout for a table, as UTF-8 unless it is a terminal.

    Returns
    -------
    text file
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


def show_notices(notices: Iterable[str]) -> None:
    """Print notes for the user on stderr.

    Parameters
    ----------
    notices : iterable of str
        One sentence per line.
    """
    for notice in notices:
        text = make_text(f"note: {notice}", "yellow")
        make_console(stderr=True).print(text, soft_wrap=True)


def make_console(*, stderr: bool) -> "Console":
    """Make a rich console, `PIPED_WIDTH` columns wide where it is not a terminal.

    Parameters
    ----------
    stderr : bool
        Whether it prints to stderr; else to stdout.

    Returns
    -------
    Console
    """
    from rich.console import Console

    # Names of files and labels must not be interpreted as markup, or highlighted.
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


def make_text(text: object, style: str = "") -> "Text":
    """Make text with untrusted names safe for a terminal.

    Parameters
    ----------
    text : object
        Converted to str. Control characters are escaped.
    style : str
        A rich style. None by default.

    Returns
    -------
    Text
    """
    from rich.text import Text

    return Text(to_printable(text, MAX_MESSAGE_CHARS), style)
