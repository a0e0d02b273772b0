"""`--engine auto`: start with eager, change to a faster engine where its start-up pays."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from featurize.engines.base import Engine, find_missing_onnx_packages
from featurize.errors import CallError, EngineError


@dataclass(frozen=True)
class EngineProfile:
    """What an engine costs and brings, counted low: `benchmarks/engines.py` measures it.

    Attributes
    ----------
    startup : float
        Seconds until it runs: imports, export or compilation, comparison with eager.
    speed : float
        Its rate, in eager's.
    """

    startup_seconds: float
    speedup: float


ENGINE_PROFILES = {
    "onnxruntime": EngineProfile(10.0, 1.1),
    "compile": EngineProfile(60.0, 1.1),
    "cuda": EngineProfile(90.0, 1.5),
}


class EngineSelector:
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
        requested: str,
        precision: str,
        open_named: Callable[[str], Engine],
        say: Callable[[str], None],
    ) -> None:
        self.precision, self._open_engine, self._say = precision, open_named, say
        self.requested = requested
        self.reason = "few images" if requested == "auto" else "as asked for"
        self._is_decided = requested != "auto"

    def open_first(self) -> Engine:
        """The engine to begin with."""
        return self._open_engine("eager" if self.requested == "auto" else self.requested)

    def upgrade(self, current: Engine, seconds_per_image: float, n_remaining: int) -> Engine | None:
        """An engine to go on with, where that pays; weighed once.

        Parameters
        ----------
        now : Engine
            What runs.
        seconds_each : float
            What an image takes in it, measured.
        n_remaining : int
            Images still to come.

        Returns
        -------
        Engine, or None to stay
        """
        if self._is_decided:
            return None
        self._is_decided = True
        takes = n_remaining * seconds_per_image
        self.reason = f"{n_remaining:,} images take it about {takes:.0f} s"
        for name in ("cuda",) if current.device != "cpu" else ("onnxruntime", "compile"):
            promise = ENGINE_PROFILES[name]
            if takes * (1 - 1 / promise.speedup) < promise.startup_seconds:
                self.reason += f", {name} about {promise.startup_seconds:.0f} s to start"
                continue
            try:
                engine = self._open_if_possible(name)
            except (EngineError, CallError) as error:
                self._say(f"not by the engine {name}: {error}")
                self.reason += f", {name} cannot be had"
                continue
            self.reason = f"{n_remaining:,} images would take eager about {takes:.0f} s"
            self._say(f"going on with the engine {name}: {self.reason}")
            return engine
        return None

    def _open_if_possible(self, name: str) -> Engine:
        if lack := _find_obstacle(name, self.precision):
            raise EngineError(lack)
        return self._open_engine(name)


def _find_obstacle(name: str, precision: str) -> str:
    """What keeps an engine from being tried at all."""
    if name == "onnxruntime":
        if precision != "float32":
            return f"it computes in float32, not {precision}"
        if missing := find_missing_onnx_packages():
            return f"it needs {', '.join(missing)}: pip install 'headgraft[onnx]'"
    if name == "compile" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        return "it needs a C++ compiler"
    return ""
