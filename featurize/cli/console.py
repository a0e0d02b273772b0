"""How the command line talks: JSON on stdout; progress, notes and errors on stderr."""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from featurize.errors import FeaturizeError, RunInterruptedError
from featurize.system import signals
from featurize.text import to_printable

EXIT_DONE, EXIT_UNEXPECTED, EXIT_WRONG_INPUT, EXIT_INCOMPLETE = 0, 1, 2, 3


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def print_stderr(text: str) -> None:
    """A line on stderr."""
    print(to_printable(text, limit=10_000), file=sys.stderr, flush=True)


def run_command(command: Callable[[], int], debug: bool, as_json: bool) -> NoReturn:
    """Run a verb; turn what it raises into a line and an exit code."""
    try:
        code = command()
    except RunInterruptedError as stop:
        signals.acknowledge()
        if as_json:
            print_json(stop.summary)
        print_stderr(str(stop))
        code = EXIT_INCOMPLETE
    except KeyboardInterrupt:
        signals.acknowledge()
        print_stderr("stopped")
        code = EXIT_INCOMPLETE
    except BrokenPipeError:
        sys.stderr.close()
        code = EXIT_UNEXPECTED
    except (FeaturizeError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if debug:
            traceback.print_exc()
        print_stderr(f"error: {error}")
        code = EXIT_WRONG_INPUT
    except Exception as error:
        if signals.was_received():  # an interrupted import may end as any exception
            raise KeyboardInterrupt from error
        if debug:
            traceback.print_exc()
        print_stderr(f"error: unexpected {type(error).__name__}: {error} (--debug shows where)")
        code = EXIT_UNEXPECTED
    raise SystemExit(code)
