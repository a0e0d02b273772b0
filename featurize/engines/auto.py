"""`--engine auto`: start with eager, and change to a faster engine if its start-up pays off."""

from collections.abc import Callable
from dataclasses import dataclass

from featurize.engines.base import Engine, find_obstacle
from featurize.errors import CallError, EngineError


@dataclass(frozen=True)
class EngineProfile:
    """Cost and speed of an engine, conservative; measured by `benchmarks/engines.py`.

    Attributes
    ----------
    startup_seconds : float
        Time for imports, export or compilation, and the comparison with eager.
    speedup : float
        Images per second, relative to eager.
    """

    startup_seconds: float
    speedup: float


ENGINE_PROFILES = {
    "onnxruntime": EngineProfile(10.0, 1.1),
    "compile": EngineProfile(60.0, 1.1),
    "cuda": EngineProfile(90.0, 1.5),
}


class EngineSelector:
    """Opens the first engine of a job, and a faster one if that saves time.

    It may serve several jobs, one after another: an engine that was opened stays open, and the
    next job begins with it.

    Parameters
    ----------
    requested : str
        One of `featurize.engines.base.ENGINES`.
    precision : str
        One of `featurize.engines.base.PRECISIONS`.
    open_engine : callable
        Opens an engine by name; first called by `open_first`.
    say : callable
        Receives a sentence about each choice.

    Attributes
    ----------
    reason : str
        Why the current engine was chosen, in a few words.
    n_elsewhere : int
        Images that later jobs are to run, by the caller's estimate.
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
        self.n_elsewhere = 0
        self._is_decided = requested != "auto"
        self._engine: Engine | None = None
        self._failed: set[str] = set()

    def open_first(self) -> Engine:
        """Open the first engine.

        Returns
        -------
        Engine
            The requested one; for ``auto`` `eager`, or what an earlier job has changed to.

        Raises
        ------
        CallError, EngineError
            If it cannot be opened.
        """
        if self._engine is None:
            name = "eager" if self.requested == "auto" else self.requested
            self._engine = self._open_engine(name)
        elif self.requested == "auto" and self._engine.name == "eager":
            self._is_decided = False
        return self._engine

    def fall_back(self, name: str, device: str, cause: Exception) -> Engine:
        """Open eager in place of an engine that failed in the middle of a job.

        Nothing else may refer to that engine: first its memory is given back.

        Parameters
        ----------
        name, device : str
            Of the engine that failed.
        cause : Exception

        Returns
        -------
        Engine
            The engine `eager`, for this job and later ones.

        Raises
        ------
        CallError, EngineError
            If it cannot be opened.
        """
        first_line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        self._say(f"the engine {name} failed ({first_line[:200]}): going on with eager")
        self._failed.add(name)
        self._is_decided = True
        self._engine = None
        if device != "cpu":
            from featurize.engines.torch_settings import free_gpu_memory

            free_gpu_memory()
        self._engine = self._open_engine("eager")
        self.reason = f"{name} failed"
        return self._engine

    def upgrade(self, current: Engine, seconds_per_image: float, n_remaining: int) -> Engine | None:
        """Open a faster engine if that saves time; decided once per job.

        Parameters
        ----------
        current : Engine
        seconds_per_image : float
            Measured with `current`.
        n_remaining : int
            Images still to be run.

        Returns
        -------
        Engine or None
            None to stay with `current`.
        """
        if self._is_decided:
            return None
        self._is_decided = True
        n_remaining += self.n_elsewhere
        current_seconds = n_remaining * seconds_per_image
        self.reason = f"{n_remaining:,} images take it about {current_seconds:.0f} s"
        for name in ("cuda",) if current.device != "cpu" else ("onnxruntime", "compile"):
            profile = ENGINE_PROFILES[name]
            if current_seconds * (1 - 1 / profile.speedup) < profile.startup_seconds:
                self.reason += f", {name} about {profile.startup_seconds:.0f} s to start"
                continue
            if name in self._failed:
                self.reason += f", {name} cannot be had"
                continue
            try:
                if obstacle := find_obstacle(name, current.device, self.precision):
                    raise EngineError(obstacle)
                engine = self._open_engine(name)
            except (EngineError, CallError) as error:
                self._say(f"not by the engine {name}: {error}")
                self.reason += f", {name} cannot be had"
                self._failed.add(name)
                continue
            self._engine = engine
            self.reason = f"{n_remaining:,} images would take eager about {current_seconds:.0f} s"
            self._say(f"going on with the engine {name}: {self.reason}")
            return engine
        return None
