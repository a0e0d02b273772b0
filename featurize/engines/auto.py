"""`--engine auto`: start with eager, change to a faster engine where its start-up pays."""

from collections.abc import Callable
from dataclasses import dataclass

from featurize.engines.base import Engine, find_obstacle
from featurize.errors import CallError, EngineError


@dataclass(frozen=True)
class EngineProfile:
    """What an engine costs and brings, counted low: `benchmarks/engines.py` measures it.

    Attributes
    ----------
    startup_seconds : float
        Until it runs: imports, export or compilation, comparison with eager.
    speedup : float
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
    """Opens the engine that a job begins with, and a faster one where that pays.

    Parameters
    ----------
    requested : str
        ``auto``, or the engine that was named.
    precision : str
    open_engine : callable
        Opens an engine by name; not called before `open_first`.
    say : callable
        Receives what was chosen, and why.

    Attributes
    ----------
    reason : str
        Why the engine that runs is the one, in a few words.
    """

    def __init__(
        self,
        requested: str,
        precision: str,
        open_engine: Callable[[str], Engine],
        say: Callable[[str], None],
    ) -> None:
        self.requested, self.precision = requested, precision
        self._open_engine, self._say = open_engine, say
        self.reason = "few images" if requested == "auto" else "as asked for"
        self._is_decided = requested != "auto"

    def open_first(self) -> Engine:
        """Open the engine to begin with."""
        return self._open_engine("eager" if self.requested == "auto" else self.requested)

    def upgrade(self, current: Engine, seconds_per_image: float, n_remaining: int) -> Engine | None:
        """Open an engine to go on with, where that pays; decided once.

        Parameters
        ----------
        current : Engine
            What runs.
        seconds_per_image : float
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
            profile = ENGINE_PROFILES[name]
            if takes * (1 - 1 / profile.speedup) < profile.startup_seconds:
                self.reason += f", {name} about {profile.startup_seconds:.0f} s to start"
                continue
            try:
                if obstacle := find_obstacle(name, current.device, self.precision):
                    raise EngineError(obstacle)
                engine = self._open_engine(name)
            except (EngineError, CallError) as error:
                self._say(f"not by the engine {name}: {error}")
                self.reason += f", {name} cannot be had"
                continue
            self.reason = f"{n_remaining:,} images would take eager about {takes:.0f} s"
            self._say(f"going on with the engine {name}: {self.reason}")
            return engine
        return None
