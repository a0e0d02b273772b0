"""`--engine auto`: start with eager, change to a faster engine where its start-up pays."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from featurize.engines.interface import Engine, missing_packages
from featurize.errors import CallError, EngineError


@dataclass(frozen=True)
class Promise:
    """What an engine costs and brings, counted low: `benchmarks/engines.py` measures it.

    Attributes
    ----------
    startup : float
        Seconds until it runs: imports, export or compilation, comparison with eager.
    speed : float
        Its rate, in eager's.
    """

    startup: float
    speed: float


PROMISES = {
    "onnxruntime": Promise(10.0, 1.1),
    "compile": Promise(60.0, 1.1),
    "cuda": Promise(90.0, 1.5),
}


class Choice:
    """Which engine runs a task.

    Parameters
    ----------
    asked : str
        ``auto``, or the engine that was named.
    precision : str
    open_named : callable
        Opens an engine by name.
    say : callable
        Told what was chosen, and why.

    Attributes
    ----------
    why : str
        Why the engine that runs is the one, in a few words.
    """

    def __init__(
        self,
        asked: str,
        precision: str,
        open_named: Callable[[str], Engine],
        say: Callable[[str], None],
    ) -> None:
        self.precision, self._open, self._say = precision, open_named, say
        self.asked = asked
        self.why = "few images" if asked == "auto" else "as asked for"
        self._weighed = asked != "auto"

    def first(self) -> Engine:
        """The engine to begin with."""
        return self._open("eager" if self.asked == "auto" else self.asked)

    def better(self, now: Engine, seconds_each: float, left: int) -> Engine | None:
        """An engine to go on with, where that pays; weighed once.

        Parameters
        ----------
        now : Engine
            What runs.
        seconds_each : float
            What an image takes in it, measured.
        left : int
            Images still to come.

        Returns
        -------
        Engine, or None to stay
        """
        if self._weighed:
            return None
        self._weighed = True
        takes = left * seconds_each
        self.why = f"{left:,} images take it about {takes:.0f} s"
        for name in ("cuda",) if now.device != "cpu" else ("onnxruntime", "compile"):
            promise = PROMISES[name]
            if takes * (1 - 1 / promise.speed) < promise.startup:
                self.why += f", {name} about {promise.startup:.0f} s to start"
                continue
            try:
                engine = self._opened(name)
            except (EngineError, CallError) as error:
                self._say(f"not by the engine {name}: {error}")
                self.why += f", {name} cannot be had"
                continue
            self.why = f"{left:,} images would take eager about {takes:.0f} s"
            self._say(f"going on with the engine {name}: {self.why}")
            return engine
        return None

    def _opened(self, name: str) -> Engine:
        if lack := _lack(name, self.precision):
            raise EngineError(lack)
        return self._open(name)


def _lack(name: str, precision: str) -> str:
    """What keeps an engine from being tried at all."""
    if name == "onnxruntime":
        if precision != "float32":
            return f"it computes in float32, not {precision}"
        if missing := missing_packages():
            return f"it needs {', '.join(missing)}: pip install 'headgraft[onnx]'"
    if name == "compile" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        return "it needs a C++ compiler"
    return ""
