"""An engine that fails in the middle of a run costs no row: eager goes on, and says so."""

import numpy as np
import pytest

from featurize.engines.auto import EngineSelector
from featurize.engines.base import ReadyFeatures
from featurize.engines.batching import BatchRunner
from featurize.errors import EngineError
from featurize.system.device_errors import is_gpu_lost, is_out_of_memory

MEMORY_TEXTS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "miopenStatusAllocFailed",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 100 bytes",
]
OTHER_TEXTS = [
    "CUDA error: operation not permitted when stream is capturing",
    "CUDA error: operation failed due to a previous error during capture",
    "Triton Error [CUDA]: invalid argument",
]
LOST_TEXTS = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
]


class Failing:
    """An engine whose batches fail from the n-th on, when submitted or when collected.

    Its feature of an image is the image's first pixel.
    """

    device = "cpu"

    def __init__(self, name, error=None, first=10**9, at="submit", last=10**9, most=10**9):
        self.name, self.error, self.first, self.last, self.at = name, error, first, last, at
        self.batch_size, self.max_batch_size, self.max_in_flight = 4, 4, 2
        self.most, self.calls, self.collected = most, 0, 0

    def submit(self, pixels):
        self.calls += 1
        number, features = self.calls, [pixels[:, 0, 0, :1].astype(np.float32)]
        is_failing = self.first <= number <= self.last or len(pixels) > self.most
        if is_failing and self.at == "submit":
            raise self.error
        engine = self

        class Pending:
            def collect(self):
                engine.collected += 1
                if is_failing:
                    raise engine.error
                return features

        return Pending()

    def run(self, pixels):
        return self.submit(pixels).collect()


class Eager(Failing):
    def submit(self, pixels):
        return ReadyFeatures(super().submit(pixels).collect())


def through(engine, eager=None, count=30):
    """Pass images with two batches in flight, and check the rows; what was said, and the runner."""
    said = []
    eager = eager or Eager("eager")
    selector = EngineSelector(
        engine.name, "float32", lambda name: eager if name == "eager" else engine, said.append
    )
    runner = BatchRunner(selector)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    found, start = [], 0
    while start < count or runner.n_in_flight:
        while start < count and runner.n_in_flight < runner.max_in_flight:
            runner.submit(pixels[start : start + runner.batch_size])
            start += runner.batch_size
        found.append(runner.collect()[0])
    assert np.array_equal(np.concatenate(found)[:, 0], pixels[:, 0, 0, 0])
    return said, runner


@pytest.mark.parametrize("text", MEMORY_TEXTS)
def test_every_way_to_run_out_of_memory_is_known(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_gpu_lost(RuntimeError(text))


@pytest.mark.parametrize("text", OTHER_TEXTS + LOST_TEXTS)
def test_other_errors_are_not_taken_for_it(text):
    assert not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("at", ["submit", "collect"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("text", [MEMORY_TEXTS[0], MEMORY_TEXTS[4], *OTHER_TEXTS])
def test_eager_goes_on(text, call, at):
    engine = Failing("cuda", RuntimeError(text), first=call, at=at)
    said, runner = through(engine)
    assert said == [f"the engine cuda failed ({text}): going on with eager"]
    assert (runner.engine.name, runner.reason) == ("eager", "cuda failed")


def test_an_engine_that_fails_once_is_left_once():
    """The batch that was in flight beside the failed one is not lost, nor said a second time."""
    engine = Failing("cuda", RuntimeError(OTHER_TEXTS[0]), first=2, last=2, at="collect")
    said, _ = through(engine)
    assert len(said) == 1
    assert engine.collected == engine.calls  # nothing is left on the device


def test_memory_that_ends_for_eager_too_makes_batches_smaller():
    error = RuntimeError(MEMORY_TEXTS[1])
    said, runner = through(
        Failing("cuda", error, first=2), Eager("eager", error, most=2, at="submit")
    )
    assert len(said) == 1
    assert runner.batch_size == 2


def test_engines_of_the_processor_shrink_where_memory_ends_and_stay():
    engine = Failing("onnxruntime", MemoryError(), most=2)
    said, runner = through(engine)
    assert (said, runner.engine, runner.batch_size) == ([], engine, 2)


def test_what_eager_cannot_do_is_raised():
    error = ValueError("a layer of one's own")
    with pytest.raises(ValueError, match="a layer of one's own"):
        through(Eager("eager", error, first=2), Eager("eager", error, first=2))


@pytest.mark.parametrize("text", LOST_TEXTS)
def test_a_lost_gpu_ends_the_run_with_a_sentence(text):
    engine = Failing("cuda", RuntimeError(f"{text}\nCompile with TORCH_USE_CUDA_DSA"), first=2)
    with pytest.raises(EngineError, match=r"the GPU cpu was lost .*the same command goes on") as e:
        through(engine)
    assert "DSA" not in str(e.value)


def test_errors_keep_no_memory():
    """The traceback of an error refers to the frames in which memory ran out."""
    import gc
    import weakref

    class Large:
        pass

    kept = []

    class Holding(Failing):
        def submit(self, pixels):
            large = Large()
            kept.append(weakref.ref(large))
            return super().submit(pixels)

    engine = Holding("onnxruntime", MemoryError(), most=2)
    through(engine)
    gc.collect()
    assert not any(reference() for reference in kept)
