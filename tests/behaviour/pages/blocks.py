"""A page of Markdown, read for what in it can be run: its commands and its Python, in order."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^( *)```([a-z]*)[^`\n]*\n(.*?)^ *```\s*$", re.DOTALL | re.MULTILINE)
TOP = re.compile(r"\A(?:\s*<!--.*?-->)*", re.DOTALL)
LANGUAGES = {"console", "python", "bash", "r", "julia", "json", "csv", "toml", "html", "text", ""}
NO_SHELL = re.compile(r"[|&;<>]+.*|\d?>.*|.*\$[({\w].*|.*`.*")


class PageError(AssertionError):
    """What a page says is not so, or cannot be run; with the page and the line."""


@dataclass(frozen=True)
class Block:
    """Code between two fences; `line` is that of the opening one."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A line that begins with ``$``, and what the page shows below it."""

    words: list[str]
    environment: dict[str, str]
    expected: list[str]
    code: int
    line: int

    @property
    def text(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True)
class Page:
    """A page, its blocks, and what the comments at its top say."""

    path: Path
    text: str
    blocks: list[Block]
    world: str
    slow: bool

    @property
    def name(self) -> str:
        return self.path.name

    def place(self, line: int) -> str:
        return f"{self.path}:{line}"


def read_page(path: Path) -> Page:
    text = path.read_text()
    blocks = []
    for found in FENCE.finditer(text):
        indent, language, body = found.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        number = text.count("\n", 0, found.start()) + 1
        if language not in LANGUAGES:
            raise PageError(f"{path}:{number} has a block of {language!r}")
        blocks.append(Block(language, "\n".join(lines) + "\n", number))
    top = TOP.match(text)[0]
    world = re.search(r"<!-- world: (\w+) -->", top)
    slow = "<!-- slow -->" in top
    return Page(path, text, blocks, world[1] if world else "photos", slow)


def prose(page: Page) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page.text)


def read_commands(page: Page, block: Block) -> list[Command]:
    """The commands of a block of ``console``."""
    commands: list[Command] = []
    lines = enumerate(block.text.splitlines(), block.line + 1)
    for number, line in lines:
        if not line.startswith("$ "):
            if not commands:
                raise PageError(f"{page.place(number)}: output before any command")
            commands[-1].expected.append(line)
            continue
        while line.endswith("\\"):
            line = line[:-1] + " " + next(lines)[1]
        commands.append(_read_command(page, line[2:], number))
    return commands


def _read_command(page: Page, line: str, number: int) -> Command:
    tokens = shlex.shlex(line, posix=True)
    tokens.whitespace_split, tokens.commenters = True, ""
    words, environment, code = [], {}, 0
    while (word := tokens.get_token()) is not None:
        if word.startswith("#"):
            comment = line[line.index(word) :]
            found = re.search(r"\bexit (\d)\b", comment)
            code = int(found[1]) if found else 0
            break
        words.append(word)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if not words:
        raise PageError(f"{page.place(number)}: no command")
    return Command(words, environment, [], code, number)


def check_no_shell(page: Page, command: Command) -> None:
    """No pipe, no redirection, no variable: what is run is run without a shell."""
    for word in command.words:
        if NO_SHELL.fullmatch(word):
            raise PageError(f"{page.place(command.line)}: {word!r} needs a shell; there is none")
