"""SIGINT and SIGTERM at random instants over what the commands do, and how each of them ends.

By hand, five hundred of them, with the distribution of the times::

    python -m tests.behaviour.attack.stopping 500
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .starting import Ended, Started, Starter, end_session, left_after
from .world import World, classes

LIMIT = 3.0  # seconds from the signal to the end
KINDS = ("create", "images", "compare", "fit", "finetune", "report", "predict")
HEADS = ("--heads", "ridge,ncm", "--layers", "each")


@dataclass
class Try:
    """One signal: where it fell, and what became of the command."""

    number: int
    kind: str
    sign: int
    background: bool
    group: bool
    fresh: bool
    instant: float
    code: int = 0
    seconds: float = 0.0
    early: bool = False  # before the command's first line: Python itself was starting
    waited: bool = False  # it said that it waits for the disk

    def __str__(self) -> str:
        where = "background" if self.background else "foreground"
        to = "its group" if self.group else "it"
        how = "afresh" if self.fresh else "forked"
        return (
            f"try {self.number}: {self.kind}, {signal.Signals(self.sign).name} to {to} in the "
            f"{where} ({how}) after {self.instant:.3f} s: exit {self.code} in {self.seconds:.2f} s"
        )


@dataclass
class Stops:
    """Carries the tries out; the worlds they happen in are made once.

    Parameters
    ----------
    fresh : float
        The share of tries that are installed commands in processes of their own.
    finished : float
        The share after which the command is run again to its end, where that takes seconds.
    """

    start: Starter
    home: Path
    world: World
    seed: int = 13
    fresh: float = 0.2
    finished: float = 0.34
    tries: list[Try] = field(default_factory=list)
    _took: dict[tuple[str, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taught = self.home / "taught"
        self.images = classes(self.taught / "images", each=20)
        words = ("--backbone", "seedling", "--layers", "stage2,stage4", "--device", "cpu")
        done = self.start("featurize", "run", self.images, "-o", self.taught / "c.h5", *words)
        assert done.code == 0, done.said
        words = ("fit", self.taught / "c.h5", "-o", self.taught / "h", "--head", "ncm")
        assert self.start("classify", *words).code == 0

    def words(self, kind: str, folder: Path) -> tuple[object, ...]:
        """The command of a kind, for a cache and outputs in a folder of their own."""
        cache, output = folder / "c.h5", folder / "out"
        if kind in ("create", "images"):
            return ("featurize", *self.world.words(cache))
        if kind == "finetune":
            options = ("--backbone", "seedling", "--tune", "stage4", "--epochs", "3")
            return ("classify", "finetune", self.images, "-o", output, *options, "--device", "cpu")
        of = {
            "compare": (cache, *HEADS, "--json"),
            "fit": (cache, "-o", output, "--head", "softmax"),
            "predict": (self.taught / "h", self.images, "-o", output),
            "report": (cache, "-o", output, *HEADS, "--images", self.images),
        }
        return ("classify", kind, *of[kind])

    def lay(self, kind: str, name: str) -> Path:
        """A folder in which a command of a kind can begin."""
        folder = self.home / name
        if kind in ("create", "images"):
            self.world.lay(folder, kind)
        else:
            folder.mkdir()
            shutil.copy2(self.taught / "c.h5", folder / "c.h5")
        return folder

    def took(self, kind: str, fresh: bool) -> float:
        """How long a command takes that nobody stops."""
        if (kind, fresh) not in self._took:
            folder = self.lay(kind, f"whole-{kind}-{fresh}")
            name, *words = self.words(kind, folder)
            done = self.start(str(name), *words, fresh=fresh, hang=120)
            assert done.code == 0, done.said
            self._took[kind, fresh] = done.seconds
        return self._took[kind, fresh]

    def draw(self, number: int, kind: str) -> Try:
        """What happens in a try: the same for the same seed."""
        rng = np.random.default_rng([self.seed, number])
        background = bool(rng.random() < 0.5)
        sign = signal.SIGTERM if background or rng.random() < 0.5 else signal.SIGINT
        group = bool(rng.random() < 0.5)
        fresh = bool(rng.random() < self.fresh)
        instant = float(rng.uniform(0, self.took(kind, fresh)))
        return Try(number, kind, int(sign), background, group, fresh, instant)

    def stop(self, number: int, kind: str) -> Try:
        """Carry out one try and check all that has to hold after it."""
        drawn = self.draw(number, kind)
        folder = self.lay(kind, f"try-{number}")
        name, *words = self.words(kind, folder)
        run = self.start.start(str(name), *words, background=drawn.background, fresh=drawn.fresh)
        while not drawn.fresh and not run.listens() and run.poll() is None:
            time.sleep(0.001)
        run.poll(drawn.instant)
        drawn.early = not run.listens() and run.poll() is None
        told = time.monotonic()
        run.send(drawn.sign, drawn.group)
        ended = self._ended(run, drawn)
        drawn.code, drawn.seconds = ended.code, time.monotonic() - told
        drawn.waited = "waiting for" in ended.err
        self.tries.append(drawn)
        print(drawn, flush=True)
        left = left_after(run.pid)
        if left:
            end_session(run.pid)
        assert not left, f"{drawn}: still at work after 5 s: {left}"
        self.check(drawn, ended, folder)
        shutil.rmtree(folder)
        return drawn

    def _ended(self, run: Started, drawn: Try) -> Ended:
        try:
            return run.wait(60)
        except AssertionError as error:
            raise AssertionError(f"{drawn}: {error}") from None

    def check(self, drawn: Try, ended: Ended, folder: Path) -> None:
        """What has to hold."""
        said = f"{drawn}\n{ended.said}"
        if drawn.early:  # the system or Python ended it, before a line of ours
            assert ended.code != 0, said
            assert {path.name for path in folder.iterdir()} <= {"c.h5"}, said
        else:
            assert drawn.seconds < LIMIT or drawn.waited, said
            assert ended.code in (3, 0), said
            assert "Traceback" not in ended.err, said
            assert "Exception ignored" not in ended.err, said
            if ended.code == 3:
                assert ended.err.strip(), f"it says nothing: {said}"
        if drawn.kind in ("create", "images"):
            self.world.check(folder)
            self.world.finish(folder)
            return
        output = folder / "out"
        assert not list(folder.glob("*.tmp")), said
        assert not list(folder.glob("*.kept/*.tmp")), said
        if output.exists() or ended.code == 0:
            self.check_output(drawn.kind, folder, ended)
        rng = np.random.default_rng([self.seed, drawn.number, 1])
        if drawn.kind == "fit" or rng.random() < self.finished:
            name, *words = self.words(drawn.kind, folder)
            again = self.start(str(name), *words, hang=120)
            assert again.code == 0, f"the rerun: {again.said}\nafter {said}"
            self.check_output(drawn.kind, folder, again)

    def check_output(self, kind: str, folder: Path, ended: Ended) -> None:
        """An output that is there is whole."""
        output = folder / "out"
        if kind in ("fit", "finetune"):
            done = self.start("classify", "evaluate", output, folder / "c.h5", "--json")
            if kind == "finetune":  # of another network: read whole, then refused
                assert done.code == 2, done.said
                assert "weights_sha256" in done.err, done.said
            else:
                assert done.code == 0, done.said
        elif kind == "predict":
            assert len(output.read_text().splitlines()) == 61
        elif kind == "report":
            assert output.read_text(encoding="utf-8").rstrip().endswith("</html>")
        elif ended.code == 0:
            assert len(ended.json()["records"]) == 4, ended.said

    def told(self) -> str:
        """The distribution of the times, and of the exit codes."""
        seconds = np.array([one.seconds for one in self.tries if not one.early])
        if not len(seconds):
            return "no tries"
        quantiles = np.quantile(seconds, [0.5, 0.9, 0.99, 1])
        codes = Counter(f"{one.kind} {one.code}" for one in self.tries)
        return (
            f"{len(self.tries)} signals, {sum(one.early for one in self.tries)} of them while "
            f"Python started; seconds to the end: median {quantiles[0]:.2f}, "
            f"90 % {quantiles[1]:.2f}, 99 % {quantiles[2]:.2f}, longest {quantiles[3]:.2f}; "
            f"over {LIMIT}: {int((seconds >= LIMIT).sum())}, "
            f"said to wait {sum(one.waited for one in self.tries)}; "
            + ", ".join(f"{n} x {what}" for what, n in sorted(codes.items()))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tries", type=int)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    parser.add_argument("--fresh", type=float, default=0.2, help="share of real processes")
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="stopping-"))
    start, failed = Starter(), 0
    (home / "world").mkdir()
    stops = Stops(start, home, World(start, home / "world"), given.seed, given.fresh)
    kinds = given.kinds.split(",")
    for number in range(given.first, given.first + given.tries):
        try:
            stops.stop(number, kinds[number % len(kinds)])
        except AssertionError as error:
            failed += 1
            print(f"FAILED (--seed {given.seed} --first {number}): {error}", flush=True)
    print(stops.told())
    print(f"{failed} failed")
    start.end()
    shutil.rmtree(home)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
