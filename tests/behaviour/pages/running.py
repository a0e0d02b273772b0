"""Run a page as its reader would: commands and Python, in order, in a folder of its own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..attack.starting import Ended, Started, Starter
from .blocks import Block, Command, Page, PageError, check_no_shell, read_commands
from .worlds import WORLDS, Worlds

OURS = ("featurize", "classify")
SIMPLE = ("cat", "cp", "head", "ls", "mkdir", "mv", "rm")
KNOWN = ("git", "make", "pip", "python3")  # shown, and not run here
HANG = 300.0  # seconds
SESSION = Path(__file__).with_name("session.py")
LATE = ("timm", "pydantic.main")  # what many commands import, where it is installed
Words = list[str]


class Reader:
    """Runs pages; `change` may put other words in place of a command's, or none to leave it out."""

    def __init__(self, home: Path) -> None:
        also = tuple(name for name in LATE if importlib.util.find_spec(name.partition(".")[0]))
        self.start = Starter(also=also, one_core=True)
        self._home, self._worlds, self._count = home, Worlds(home / "worlds"), 0

    def run(
        self,
        page: Page,
        change: Callable[[Words], Words | None] = list,
        world: str | None = None,
    ) -> int:
        """Run all blocks of a page; how many there were."""
        world = world or page.world
        if world not in WORLDS:
            raise PageError(f"{page.path} asks for the world {world!r}: {', '.join(WORLDS)}")
        self._count += 1
        folder = self._worlds.lay(world, self._home / f"{self._count}-{page.path.stem}")
        python = Python(self.start, folder)
        count = 0
        try:
            for block in page.blocks:
                if block.language == "console":
                    for command in read_commands(page, block):
                        self._run_command(page, command, folder, change)
                elif block.language == "python":
                    python.run(page, block)
                count += block.language in ("console", "python")
        finally:
            python.end()
        return count

    def end(self) -> None:
        self.start.end()

    def _run_command(
        self, page: Page, command: Command, folder: Path, change: Callable[[Words], Words | None]
    ) -> None:
        name = command.words[0]
        if name in KNOWN or command.words[:3] == ["python", "-m", "pip"]:
            return
        if name not in (*OURS, *SIMPLE, "python"):
            known = ", ".join((*OURS, "python", *SIMPLE, *KNOWN))
            raise PageError(f"{page.place(command.line)}: {name!r} is none of {known}")
        check_no_shell(page, command)
        words = change(command.words)
        if words is None:
            return
        done = self._call(words, command.environment, folder)
        where = f"{page.place(command.line)}: $ {command.text}"
        if done.code != command.code:
            raise PageError(f"{where}\nexpected exit {command.code}\n{done.said}")
        if missing := find_missing(command.expected, done.out, done.err):
            raise PageError(f"{where}\ndid not say {missing!r}\n{done.said}")

    def _call(self, words: Words, environment: dict[str, str], folder: Path) -> Ended:
        name, *arguments = words
        # As wide as where stdout is a pipe: test runners set a width of their own.
        environment = path_to_commands() | {"COLUMNS": "100"} | environment
        if name in OURS:
            return self.start(name, *arguments, folder=folder, environment=environment, hang=HANG)
        line = [sys.executable if name == "python" else name, *arguments]
        done = subprocess.run(
            line, cwd=folder, capture_output=True, text=True, env=os.environ | environment
        )
        return Ended(done.returncode, done.stdout, done.stderr, 0)


class Python:
    """The one Python of a page, which begins with its first block."""

    def __init__(self, start: Starter, folder: Path) -> None:
        self._start, self._folder = start, folder
        self._process: Started | None = None

    def _begin(self) -> None:
        pipes = [self._folder.with_name(f"{self._folder.name}.{end}") for end in ("in", "out")]
        for pipe in pipes:
            os.mkfifo(pipe)
        self._process = self._start.start(
            str(SESSION), *pipes, folder=self._folder, environment=path_to_commands()
        )
        self._orders, self._answers = open(pipes[0], "w"), open(pipes[1])  # noqa: SIM115

    def run(self, page: Page, block: Block) -> None:
        if self._process is None:
            self._begin()
        order = {"text": block.text, "line": block.line, "page": str(page.path)}
        print(json.dumps(order), file=self._orders, flush=True)
        answer = self._answers.readline()
        if not answer:
            raise PageError(f"{page.place(block.line)}: Python ended\n{self._process.err}")
        if wrong := json.loads(answer):
            raise PageError(f"{page.place(block.line)}: Python\n{wrong}")

    def end(self) -> None:
        if self._process is not None:
            self._orders.close()
            self._answers.close()
            self._process.wait(20)


def path_to_commands() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def find_missing(expected: list[str], *streams: str) -> str | None:
    """The first line that is shown and was not said; within a stream the order counts.

    ``...`` is anything, and alone any number of lines. Spaces count as one.
    """
    said = [[" ".join(line.split()) for line in stream.splitlines()] for stream in streams]
    for shown in expected:
        line = " ".join(shown.split())
        if line in ("", "..."):
            continue
        pattern = re.compile(r".*".join(map(re.escape, line.split("..."))))
        for lines in said:
            place = next((k for k, each in enumerate(lines) if pattern.fullmatch(each)), None)
            if place is not None:
                del lines[: place + 1]
                break
        else:
            return shown
    return None
