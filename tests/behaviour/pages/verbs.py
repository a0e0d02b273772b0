"""Whether a line calls the commands as they are: every verb there is, every option one of it."""

import re
import shlex
from functools import cache
from typing import Any

import typer

from .blocks import Page, PageError, prose, read_commands

NAMES = ("featurize", "classify")
SPAN = re.compile(r"`((?:featurize|classify)\s[^`]+)`")


@cache
def options_by_verb() -> dict[tuple[str, str], frozenset[str]]:
    """Of each verb, its options; of a command itself under the empty verb."""
    from classify.cli.app import app as classify
    from featurize.cli.app import app as featurize

    known: dict[tuple[str, str], frozenset[str]] = {}
    for name, app in zip(NAMES, (featurize, classify), strict=True):
        group: Any = typer.main.get_command(app)  # a group, whose class is typer's secret
        for verb, command in [("", group), *group.commands.items()]:
            options = [
                text for each in command.params for text in (*each.opts, *each.secondary_opts)
            ]
            known[name, verb] = frozenset(options) | {"--help"}
    return known


def wrong_calls(line: str) -> list[str]:
    """What of a line calls a verb or an option that is not there."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()
    wrong, verb = [], None
    for before, word in zip(["", *words], words, strict=False):
        if before.rpartition("/")[2] in NAMES and re.fullmatch(r"[a-z]+,?", word):
            verb = (before.rpartition("/")[2], word.rstrip(","))
            if verb not in options_by_verb():
                wrong.append(f"there is no `{' '.join(verb)}`")
                verb = None
        elif re.fullmatch(r"[|&;]+", word):
            verb = None
        elif " " in word:
            wrong += wrong_calls(word)  # as of `sbatch --wrap "featurize run ..."`
        elif verb and re.match(r"-{1,2}[a-z]", word):
            option = re.split(r"[=,.]", word)[0]
            if option not in options_by_verb()[verb]:
                wrong.append(f"`{' '.join(verb)}` has no {option}")
        if word.endswith(";"):
            verb = None
    return wrong


def check_calls(page: Page) -> int:
    """Check all calls of a page, in blocks and in the prose; how many blocks it has of them."""
    count = 0
    for block in page.blocks:
        lines: list[tuple[int, str]] = []
        if block.language == "console":
            lines = [(command.line, command.text) for command in read_commands(page, block)]
        if block.language == "bash":
            joined = block.text.replace("\\\n", "  ")
            lines = [(block.line + 1 + k, line) for k, line in enumerate(joined.splitlines())]
        count += bool(lines)
        for number, line in lines:
            if wrong := wrong_calls(line):
                raise PageError(f"{page.place(number)}: {'; '.join(wrong)}")
    for span in SPAN.findall(prose(page)):
        if wrong := wrong_calls(" ".join(span.split())):
            raise PageError(f"{page.path}: `{span}`: {'; '.join(wrong)}")
    return count
