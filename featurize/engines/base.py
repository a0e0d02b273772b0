"""What an engine is: how it is called, which there are, what they have to agree on."""

from importlib.util import find_spec
from typing import Protocol

import numpy as np

from featurize.errors import CallError

ENGINES = ("auto", "eager", "compile", "onnxruntime", "cuda")
CPU_ENGINES = ("compile", "onnxruntime")
ONNX_PACKAGES = ("onnxruntime", "onnx", "onnxscript")
PRECISIONS = ("float32", "tf32", "bf16", "fp16")
ENGINE_RTOL = 1e-5  # distance to what eager gives for the same image, as a share of its norm


class Engine(Protocol):
    """Runs one cut backbone on one device.

    Attributes
    ----------
    name, device : str
    batch_size : int
        Images it wants at once. Who calls it may change that; fewer are taken at any time.
    largest_batch : int, read only
        More than that at once bring nothing, or a new start-up.
    """

    name: str
    device: str
    batch_size: int

    @property
    def max_batch_size(self) -> int: ...  # noqa: D102 - above

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One a layer.
        """
        ...


def check_engine(name: str, device: str, precision: str) -> None:
    """Refuse an engine that cannot be what was asked for, before anything is loaded.

    Raises
    ------
    CallError
    """
    if name not in ENGINES:
        raise CallError(f"--engine is one of {', '.join(ENGINES)}, not {name!r}")
    if name in CPU_ENGINES and device.startswith("cuda"):
        raise CallError(f"--engine {name} is for the processor; for a GPU use --engine cuda")
    if name == "cuda" and device == "cpu":
        raise CallError("--engine cuda is for GPUs; on the processor use --engine onnxruntime")
    if name == "onnxruntime":
        if precision != "float32":
            raise CallError(f"--engine onnxruntime computes in float32; {precision} needs another")
        if lacking := find_missing_onnx_packages():
            raise CallError(
                f"--engine onnxruntime needs {', '.join(lacking)}: pip install 'headgraft[onnx]'"
            )


def find_missing_onnx_packages() -> list[str]:
    """What onnxruntime would need and is not installed."""
    return [package for package in ONNX_PACKAGES if find_spec(package) is None]


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """A batch with black images behind it, to `size`."""
    if len(pixels) >= size:
        return pixels
    full = np.zeros((size, *pixels.shape[1:]), np.uint8)
    full[: len(pixels)] = pixels
    return full
