"""Run an engine in batches: how many images at once, and what to do when it fails."""

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.engines.base import Engine, PendingFeatures
from featurize.errors import EngineError
from featurize.system.device_errors import is_gpu_lost, is_out_of_memory

TRIALS_PER_SIZE = 3  # batches per size; the fastest counts
MAX_TIME_RATIO = 0.95  # grow on while time per image falls below this ratio
MAX_FEATURE_BYTES = 64 << 20  # per batch; several batches wait to be written


@dataclass(eq=False)
class _Batch:
    """A batch in flight.

    Attributes
    ----------
    pixels : uint8 array of shape (B, crop, crop, 3)
        Kept until the features are there: if the engine fails, they are run again.
    n_engine : int
        Number of the engine that it was submitted to.
    submitted : float
        `time.perf_counter` when it was.
    pending : PendingFeatures, optional
        None if it could not be submitted, or was collected.
    features : list of float32 arrays, optional
        None until it was collected.
    error : Exception, optional
        Why the engine failed.
    is_settled : bool
        Whether it was collected before its turn.
    """

    pixels: np.ndarray
    n_engine: int
    submitted: float
    pending: PendingFeatures | None = None
    features: list[np.ndarray] | None = None
    error: Exception | None = None
    is_settled: bool = False

    def submit(self, engine: Engine) -> None:
        """Submit it; note if that fails."""
        try:
            self.pending = engine.submit(self.pixels)
        except Exception as error:  # compilers and drivers raise anything
            # Its traceback would keep the memory that failed to suffice.
            self.error = error.with_traceback(None)

    def collect(self) -> None:
        """Wait for the features, unless they are there; note if that fails."""
        if self.pending is None:
            return
        try:
            self.features = self.pending.collect()
        except Exception as error:
            self.error = error.with_traceback(None)
        self.pending = None


class BatchRunner:
    """Runs an engine in batches, and searches for the fastest batch size.

    An engine that fails in the middle of a job is left for eager, and the batch is run again. A
    batch that does not fit into memory is run in parts.

    Parameters
    ----------
    selector : EngineSelector
        Opens the first engine, and a faster one once the first is timed.

    Attributes
    ----------
    engine : Engine
    batch_size : int
        Number of images that the next batch should have.
    max_in_flight : int
        How many batches may be submitted before the first of them is collected.
    last_seconds : float
        Time of the batch collected last: since it was submitted, or since the one before was
        collected.
    """

    def __init__(self, selector: EngineSelector) -> None:
        self._selector = selector
        self._in_flight: deque[_Batch] = deque()
        self._last_collected, self._n_engine = float("-inf"), 0
        self._use_engine(selector.open_first())

    def _use_engine(self, engine: Engine) -> None:
        self.engine, self.max_in_flight = engine, engine.max_in_flight
        self._n_engine += 1
        self.batch_size, self.last_seconds = engine.batch_size, 0.0
        self._is_growing = True
        self._trial_seconds: list[float] = []  # seconds per image at this batch size
        self._seconds_at_half_size = float("inf")  # per image, at half this batch size
        self._n_runs = 0

    @property
    def reason(self) -> str:
        """Why the current engine was chosen, in a few words."""
        return self._selector.reason

    @property
    def n_in_flight(self) -> int:
        """How many batches are submitted and not collected yet."""
        return len(self._in_flight)

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: submit it, and collect its features.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.

        Raises
        ------
        EngineError
            As `collect`.
        """
        self.submit(pixels)
        return self.collect()

    def submit(self, pixels: np.ndarray) -> None:
        """Start to embed a batch. If that fails, `collect` deals with it.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)
            Not to be changed before they are collected.
        """
        batch = _Batch(pixels, self._n_engine, time.perf_counter())
        self._in_flight.append(batch)
        batch.submit(self.engine)

    def collect(self) -> list[np.ndarray]:
        """Wait for the features of the first batch in flight; run it again if the engine failed.

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.

        Raises
        ------
        EngineError
            If one image does not fit into memory, or the GPU is lost.
        """
        batch = self._in_flight.popleft()
        batch.collect()
        features = self._run_again(batch) if batch.features is None else batch.features
        now = time.perf_counter()
        self.last_seconds = now - max(batch.submitted, self._last_collected)
        self._last_collected = now
        self._n_runs += 1
        is_trial = len(batch.pixels) == self.batch_size and not batch.is_settled
        if self._is_growing and is_trial:
            self._trial_seconds.append(self.last_seconds / len(batch.pixels))
            if len(self._trial_seconds) == TRIALS_PER_SIZE:
                self._maybe_grow(sum(array.nbytes for array in features))
        return features

    def maybe_upgrade(self, n_remaining: int) -> bool:
        """Change to a faster engine if that saves time on the remaining images.

        Parameters
        ----------
        n_remaining : int
            Images still to be run.

        Returns
        -------
        bool
            Whether the engine was changed.
        """
        if self._n_runs != 2 or not self._trial_seconds:
            return False  # decided once, after the second batch: the first includes start-up
        self._settle()
        engine = self._selector.upgrade(self.engine, min(self._trial_seconds), n_remaining)
        self._last_collected = time.perf_counter()
        if engine is not None:
            self._use_engine(engine)
        return engine is not None

    def _maybe_grow(self, result_bytes: int) -> None:
        seconds_per_image = min(self._trial_seconds)
        if seconds_per_image > MAX_TIME_RATIO * self._seconds_at_half_size:
            self._set_batch_size(self.batch_size // 2)
            self._is_growing = False
            return
        self._seconds_at_half_size, self._trial_seconds = seconds_per_image, []
        if 2 * self.batch_size > self.engine.max_batch_size or 2 * result_bytes > MAX_FEATURE_BYTES:
            self._is_growing = False
        else:
            self._set_batch_size(2 * self.batch_size)

    def _set_batch_size(self, size: int) -> None:
        self.batch_size = self.engine.batch_size = size

    def _settle(self) -> None:
        """Collect all batches in flight before their turn, so that nothing uses the engine."""
        for batch in self._in_flight:
            batch.collect()
            batch.is_settled = True

    def _run_again(self, batch: _Batch) -> list[np.ndarray]:
        error = batch.error
        assert error is not None
        self._settle()
        if batch.n_engine != self._n_engine:  # that engine was left meanwhile
            return self._run_within_memory(batch.pixels)
        self._refuse_lost_gpu(error)
        is_memory_short = is_out_of_memory(error)
        # Graphs of another size would be recorded in what memory the larger ones leave.
        if self.engine.name != "eager" and (self.engine.name == "cuda" or not is_memory_short):
            name, device = self.engine.name, self.engine.device
            del self.engine
            self._use_engine(self._selector.fall_back(name, device, error))
            return self._run_within_memory(batch.pixels)
        if not is_memory_short:
            raise error
        return self._run_halves(batch.pixels, str(error))

    def _run_within_memory(self, pixels: np.ndarray) -> list[np.ndarray]:
        try:
            return self.engine.run(pixels)
        except Exception as error:
            self._refuse_lost_gpu(error)
            if not is_out_of_memory(error):
                raise
            message = str(error)
        # Outside the handler: the exception keeps references to the allocated memory.
        return self._run_halves(pixels, message)

    def _run_halves(self, pixels: np.ndarray, message: str) -> list[np.ndarray]:
        if len(pixels) == 1:
            raise EngineError(
                f"not enough memory on {self.engine.device} for one image: {message}. Use "
                "--device cpu, or a smaller network or crop"
            )
        half = len(pixels) // 2
        self._set_batch_size(min(half, self.batch_size))
        self._is_growing = False
        parts = [self._run_within_memory(part) for part in (pixels[:half], pixels[half:])]
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _refuse_lost_gpu(self, error: Exception) -> None:
        if is_gpu_lost(error):
            first_line = str(error).strip().splitlines()[0]
            raise EngineError(
                f"the GPU {self.engine.device} was lost ({first_line[:200]}). What is computed is "
                "kept: the same command goes on"
            ) from error
