"""What an engine is: how it is called, which there are, what they have to agree on."""

import shutil
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

    Parameters
    ----------
    name : str
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str

    Raises
    ------
    CallError
    """
    if name not in ENGINES:
        raise CallError(f"--engine is one of {', '.join(ENGINES)}, not {name!r}")
    if precision == "tf32" and device == "cpu":
        raise CallError("--precision tf32 is for GPUs; on the processor use float32 or bf16")
    if obstacle := find_obstacle(name, device, precision):
        raise CallError(f"--engine {name}: {obstacle}")


def find_obstacle(name: str, device: str, precision: str) -> str:
    """Find what keeps an engine from running here, without loading it.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    device, precision : str

    Returns
    -------
    str
        What it is, and what to do about it; empty where there is nothing.
    """
    if name in CPU_ENGINES and device.startswith("cuda"):
        return "it is for the processor; for a GPU use --engine cuda"
    if name == "cuda" and device == "cpu":
        return "it is for GPUs; on the processor use --engine onnxruntime"
    if name == "onnxruntime" and precision != "float32":
        return f"it computes in float32, not {precision}"
    if name == "onnxruntime" and (missing := find_missing_onnx_packages()):
        return f"it needs {', '.join(missing)}: pip install 'headgraft[onnx]'"
    if name == "compile" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        return "it needs a C++ compiler"
    return ""


def find_missing_onnx_packages() -> list[str]:
    """List what onnxruntime would need and is not installed."""
    return [package for package in ONNX_PACKAGES if find_spec(package) is None]


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """A batch with black images behind it, to `size`."""
    if len(pixels) >= size:
        return pixels
    full = np.zeros((size, *pixels.shape[1:]), np.uint8)
    full[: len(pixels)] = pixels
    return full
