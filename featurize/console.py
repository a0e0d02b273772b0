"""How the command line talks: JSON on stdout; progress, notes and errors on stderr."""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from featurize import signals
from featurize.errors import FeaturizeError, Interrupted
from featurize.text import shown

DONE, UNEXPECTED, WRONG, INCOMPLETE = 0, 1, 2, 3


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def say(text: str) -> None:
    """A line on stderr."""
    print(shown(text, limit=10_000), file=sys.stderr, flush=True)


def guarded(work: Callable[[], int], debug: bool, as_json: bool) -> NoReturn:
    """Run a verb; turn what it raises into a line and an exit code."""
    try:
        code = work()
    except Interrupted as stop:
        signals.take()
        if as_json:
            print_json(stop.summary)
        say(str(stop))
        code = INCOMPLETE
    except KeyboardInterrupt:
        signals.take()
        say("stopped")
        code = INCOMPLETE
    except BrokenPipeError:
        sys.stderr.close()
        code = UNEXPECTED
    except (FeaturizeError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if debug:
            traceback.print_exc()
        say(f"error: {error}")
        code = WRONG
    except Exception as error:
        if signals.was_received():  # an interrupted import may end as any exception
            raise KeyboardInterrupt from error
        if debug:
            traceback.print_exc()
        say(f"error: unexpected {type(error).__name__}: {error} (--debug shows where)")
        code = UNEXPECTED
    raise SystemExit(code)
