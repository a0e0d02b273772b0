"""The engine protocol, the names of engines and precisions, and the checks on them."""

import re
import shutil
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from featurize.errors import CallError
from featurize.text import did_you_mean, list_choices

ENGINES = ("auto", "eager", "compile", "onnxruntime", "cuda")
CPU_ENGINES = ("compile", "onnxruntime")
ONNX_PACKAGES = ("onnxruntime", "onnx", "onnxscript")
PRECISIONS = ("float32", "tf32", "bf16", "fp16")
ENGINE_RTOL = 1e-5  # largest distance to eager's features, relative to their norm
# The same where both compute in less than float32 (docs/how-to/gpu.md).
REDUCED_RTOLS = {"tf32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}


class PendingFeatures(Protocol):
    """Features of a batch that was submitted to an engine."""

    def collect(self) -> list[np.ndarray]:
        """Wait for the features.

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.

        Raises
        ------
        RuntimeError, MemoryError
            What went wrong on the device since the batch was submitted.
        """
        ...


class Engine(Protocol):
    """Protocol of an engine, which runs one cut backbone on one device, called from one thread.

    Attributes
    ----------
    name, device : str
        One of `ENGINES`; ``cpu``, ``cuda`` or ``cuda:1``.
    batch_size : int
        Preferred number of images per batch. The caller may change it; smaller batches always
        work.
    max_batch_size : int
        Read only. Larger batches are not faster, or need another start-up.
    max_in_flight : int
        Read only. How many batches may be submitted before the first of them is collected.
    """

    name: str
    device: str
    batch_size: int

    @property
    def max_batch_size(self) -> int: ...  # noqa: D102 - above

    @property
    def max_in_flight(self) -> int: ...  # noqa: D102 - above

    def submit(self, pixels: np.ndarray) -> PendingFeatures:
        """Start to embed a batch. Batches are collected in the order they were submitted.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)
            The caller may overwrite them afterwards.

        Returns
        -------
        PendingFeatures
        """
        ...

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: submit it, and collect its features.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.
        """
        ...


@dataclass(frozen=True, eq=False)
class ReadyFeatures:
    """Features that were computed when their batch was submitted.

    Attributes
    ----------
    features : list of float32 arrays of shape (B, D)
        One per layer.
    """

    features: list[np.ndarray]

    def collect(self) -> list[np.ndarray]:
        """Return the features."""
        return self.features


class ProcessorEngine(ABC):
    """An engine of the processor: it computes a batch when it is submitted."""

    max_in_flight = 1

    @abstractmethod
    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; see `Engine.run`."""

    def submit(self, pixels: np.ndarray) -> ReadyFeatures:
        """Embed a batch; see `Engine.submit`."""
        return ReadyFeatures(self.run(pixels))


def check_device_name(device: str) -> None:
    """Check the name of a device, whether this machine has it or not.

    Parameters
    ----------
    device : str
        To be ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    CallError
        If it is another.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        return
    if re.fullmatch(r"(mps|xpu|hip|rocm|tpu|xla)(:\d+)?", device):
        raise CallError(
            f"the device {device!r} is not supported: Headgraft runs on the processor (cpu) and on "
            "NVIDIA's GPUs (cuda); use --device cpu"
        )
    hint = did_you_mean(device, ("auto", "cpu", "cuda"))
    raise CallError(f"no device {device!r}{hint}; use auto, cpu, cuda or cuda:1")


def check_engine(name: str, device: str, precision: str) -> None:
    """Check that an engine can run here with this device and precision; load nothing.

    Parameters
    ----------
    name : str
        To be one of `ENGINES`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        One of `PRECISIONS`.

    Raises
    ------
    CallError
        If the engine is unknown, or cannot run so.
    """
    if name not in ENGINES:
        raise CallError(f"--engine is one of {list_choices(name, ENGINES)}")
    if precision == "tf32" and device == "cpu":
        raise CallError("--precision tf32 is for GPUs; on the processor use float32 or bf16")
    if obstacle := find_obstacle(name, device, precision):
        raise CallError(f"--engine {name}: {obstacle}")


def find_obstacle(name: str, device: str, precision: str) -> str:
    """Find the reason why an engine cannot run here, without loading it.

    Parameters
    ----------
    name : str
        One of `ENGINES`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        One of `PRECISIONS`.

    Returns
    -------
    str
        The reason and what to do about it; empty if there is none.
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
    if name == "cuda" and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return "it needs a C compiler, which Triton starts kernels by"
    if name == "cuda" and not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "it needs Python's header files (on Debian the package python3-dev)"
    return ""


def find_missing_onnx_packages() -> list[str]:
    """List the packages of the onnxruntime engine that are not installed.

    Returns
    -------
    list of str
        Names of `ONNX_PACKAGES`.
    """
    return [package for package in ONNX_PACKAGES if find_spec(package) is None]


def pad_batch(pixels: np.ndarray, size: int) -> np.ndarray:
    """Append black images to a batch.

    Parameters
    ----------
    pixels : uint8 array of shape (B, crop, crop, 3)
    size : int
        Number of images needed.

    Returns
    -------
    uint8 array of shape (max(B, size), crop, crop, 3)
        `pixels` itself if it is large enough.
    """
    if len(pixels) >= size:
        return pixels
    padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded
