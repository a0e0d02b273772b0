"""What both command lines share: exit codes, one line for an error, JSON that is true and safe."""

import json

import pytest
import typer

from featurize.cli.console import handle_errors, print_json
from featurize.errors import CallError, RunInterruptedError


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CallError("no folder"), 2, "error: no folder\n"),
        (NotADirectoryError("a/b"), 2, "error: a/b\n"),
        (IsADirectoryError("a"), 2, "error: a\n"),
        (RunInterruptedError("stopped; 3 rows are kept"), 3, "stopped; 3 rows are kept\n"),
        (
            ZeroDivisionError("of a bug"),
            1,
            "error: unexpected ZeroDivisionError: of a bug; --debug shows the traceback\n",
        ),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(capsys, error, code, message):
    with pytest.raises(typer.Exit) as ended, handle_errors(debug=False):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == message


def test_debug_adds_the_traceback(capsys):
    with pytest.raises(typer.Exit), handle_errors(debug=True):
        raise CallError("no \x1b[31mfolder")
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("error: no \\x1b[31mfolder\n")
    assert "\x1b" not in err


def test_what_a_stopped_run_has_done_is_json_if_asked_for(capsys):
    stop = RunInterruptedError("stopped", {"rows": 3})
    with pytest.raises(typer.Exit), handle_errors(debug=False, as_json=True):
        raise stop
    assert json.loads(capsys.readouterr().out) == {"rows": 3}


def test_json_means_what_was_given_and_gives_a_terminal_no_orders(capsys):
    value = {"name": "Bär\x1b]0;\x07\x7f\x9b\u202e\udc80🐻", "n": [1, 0.5, None]}
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert "Bär" in out
    assert not {"\x1b", "\x07", "\x7f", "\x9b", "\u202e", "\udc80"} & set(out)
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"n": float("nan")})
