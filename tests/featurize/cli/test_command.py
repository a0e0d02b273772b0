"""The frame of both commands: help, and wrong usage."""

import subprocess
import sys

import pytest

COMMANDS = ("featurize", "classify")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("featurize rn", "no command 'rn' (did you mean 'run'?); see `featurize --help`"),
        (
            "classify Compare",
            "no command 'Compare' (did you mean 'compare'?); see `classify --help`",
        ),
        ("classify xyz", "no command 'xyz'; see `classify --help`"),
        (
            "featurize run a -o b --bakbone c",
            "no option --bakbone (did you mean '--backbone'?); see `featurize run --help`",
        ),
        (
            "classify fit a -o b --Layer c",
            "no option --Layer (did you mean '--layer'?); see `classify fit --help`",
        ),
        ("featurize run -x", "no option -x; see `featurize run --help`"),
        (
            "classify --json compare",
            "no option --json before the verb; write `classify fit --json`; see `classify --help`",
        ),
        ("featurize run a", "missing option '-o' / '--output'; see `featurize run --help`"),
        ("classify predict", "missing argument 'H'; see `classify predict --help`"),
        (
            "featurize run a -o",
            "option '-o' requires an argument; see `featurize run --help`",
        ),
        (
            "featurize info a b\x1b[31m",
            "got unexpected extra argument (b\\x1b[31m); see `featurize info --help`",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_the_help_to_read(line, message, command):
    name, *words = line.split(" ")
    done = command(name, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message}\n"


def test_a_value_that_does_not_fit_is_said_alike(command):
    done = command("classify", "fit", "a", "-o", "b", "--test-size", "much")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: invalid value for '--test-size': ")
    assert done.stderr.endswith("; see `classify fit --help`\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_h_is_help_and_so_is_nothing(name, command):
    full = command(name, "--help")
    short, nothing = command(name, "-h"), command(name)
    assert (full.returncode, short.returncode, nothing.returncode) == (0, 0, 2)
    assert full.stdout == short.stdout == nothing.stderr
    assert "-h, --help" in full.stdout
    assert "--install-completion" in full.stdout


def test_h_is_help_of_a_verb(command):
    assert command("classify", "fit", "-h").stdout == command("classify", "fit", "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_python_m_is_the_command(name, command, tmp_path):
    def run(*words):
        line = [sys.executable, "-m", name, *words]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)

    assert run("--version").stdout == command(name, "--version").stdout
    wrong = run("vrb")
    assert (wrong.returncode, wrong.stderr) == (2, command(name, "vrb").stderr)
