"""Choose the batch size of an engine: grow while that is faster, shrink when out of memory."""

import re
import time

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.engines.base import Engine
from featurize.errors import EngineError

TRIALS_PER_SIZE = 3  # batches per size; the fastest counts
MAX_TIME_RATIO = 0.95  # grow on while time per image falls below this ratio
MAX_FEATURE_BYTES = 64 << 20  # per batch; several batches wait to be written
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class BatchRunner:
    """Runs an engine in batches, and searches for the fastest batch size.

    Parameters
    ----------
    selector : EngineSelector
        Opens the first engine, and a faster one once the first is timed.

    Attributes
    ----------
    engine : Engine
    batch_size : int
        Number of images that the next batch should have.
    last_seconds : float
        Time of the last batch.
    """

    def __init__(self, selector: EngineSelector) -> None:
        self._selector = selector
        self._use_engine(selector.open_first())

    def _use_engine(self, engine: Engine) -> None:
        self.engine = engine
        self.batch_size, self.last_seconds = engine.batch_size, 0.0
        self._is_growing = True
        self._trial_seconds: list[float] = []  # seconds per image at this batch size
        self._seconds_at_half_size = float("inf")  # per image, at half this batch size
        self._n_runs = 0

    @property
    def reason(self) -> str:
        """Why the current engine was chosen, in a few words."""
        return self._selector.reason

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; in parts if it does not fit into memory.

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
            If one image does not fit into memory.
        """
        start = time.perf_counter()
        features = self._run_within_memory(pixels)
        self.last_seconds = time.perf_counter() - start
        self._n_runs += 1
        if self._is_growing and len(pixels) == self.batch_size:
            self._trial_seconds.append(self.last_seconds / len(pixels))
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
        engine = self._selector.upgrade(self.engine, min(self._trial_seconds), n_remaining)
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

    def _run_within_memory(self, pixels: np.ndarray) -> list[np.ndarray]:
        try:
            return self.engine.run(pixels)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise EngineError(
                    f"not enough memory on {self.engine.device} for one image: {error}. Use "
                    "--device cpu, or a smaller network or crop"
                ) from error
        # Outside the handler: the exception keeps references to the allocated memory.
        half = len(pixels) // 2
        self._set_batch_size(min(half, self.batch_size))
        self._is_growing = False
        parts = [self._run_within_memory(part) for part in (pixels[:half], pixels[half:])]
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None
