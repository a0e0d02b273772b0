"""How many images an engine gets at once: more while that pays, fewer where memory ends."""

import re
import time

import numpy as np

from featurize.engines.choice import Choice
from featurize.engines.interface import Engine
from featurize.errors import EngineError

TRIALS = 3  # batches of one size, the fastest of which counts
GAIN = 0.95  # a larger batch pays where an image takes less than this share of its time
MOST_BYTES = 64 << 20  # of features in one batch: a few of them wait to be written
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class Batches:
    """Runs an engine on batches of the size that suits it.

    Parameters
    ----------
    choice : Choice
        Opens the engine, and a better one when it is known how fast the first is.

    Attributes
    ----------
    engine : Engine
    size : int
        Images the next batch should have.
    seconds : float
        What the last batch took.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._begin(choice.first())

    def _begin(self, engine: Engine) -> None:
        self.engine = engine
        self.size, self.seconds = engine.batch_size, 0.0
        self._grows = True
        self._trials: list[float] = []  # seconds an image, at this size
        self._before = float("inf")  # the same at half of it
        self._runs = 0

    @property
    def why(self) -> str:
        """Why this engine, in a few words."""
        return self._choice.why

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; in parts, where memory does not hold it at once.

        Raises
        ------
        EngineError
            If it does not hold one image.
        """
        start = time.perf_counter()
        features = self._within_memory(pixels)
        self.seconds = time.perf_counter() - start
        self._runs += 1
        if self._grows and len(pixels) == self.size:
            self._trials.append(self.seconds / len(pixels))
            if len(self._trials) == TRIALS:
                self._grow(sum(array.nbytes for array in features))
        return features

    def improve(self, left: int) -> bool:
        """Change to a better engine where that pays for the images left; say whether it did."""
        if self._runs != 2 or not self._trials:
            return False  # the first batch pays for eager's own start-up
        engine = self._choice.better(self.engine, min(self._trials), left)
        if engine is not None:
            self._begin(engine)
        return engine is not None

    def _grow(self, result_bytes: int) -> None:
        each = min(self._trials)
        if each > GAIN * self._before:
            self._set(self.size // 2)
            self._grows = False
            return
        self._before, self._trials = each, []
        if 2 * self.size > self.engine.largest_batch or 2 * result_bytes > MOST_BYTES:
            self._grows = False
        else:
            self._set(2 * self.size)

    def _set(self, size: int) -> None:
        self.size = self.engine.batch_size = size

    def _within_memory(self, pixels: np.ndarray) -> list[np.ndarray]:
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
        # Outside of the handler: the error holds on to what was allocated.
        half = len(pixels) // 2
        self._set(min(half, self.size))
        self._grows = False
        parts = [self._within_memory(part) for part in (pixels[:half], pixels[half:])]
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None
