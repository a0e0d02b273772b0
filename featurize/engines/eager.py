"""The plain engine: torch as it is, on the processor or on one GPU."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.errors import CallError
from featurize.images.preprocess import Preprocess
from featurize.system import cpu

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS_PER_BATCH = 32 * 224 * 224


class EagerEngine:
    """Runs a cut network with torch's own kernels.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    device : str
        ``auto`` takes a GPU where there is one; else ``cpu``, ``cuda``, ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}
        float32 means float32: the faster formats are used only where they are asked for.
    """

    name = "eager"

    def __init__(
        self, module: nn.Module, preprocess: Preprocess, *, device: str, precision: str
    ) -> None:
        self.device = resolve_device(device, precision)
        self.precision = precision
        self.crop = preprocess.crop
        self.module = PixelNetwork(module, preprocess).to(self.device)
        self.batch_size, self.max_batch_size = choose_batch_sizes(self.crop, self.device)

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        with torch.inference_mode(), precision_context(self.device, self.precision):
            outputs = self.module(torch.from_numpy(pixels).to(self.device))
            return [output.float().cpu().numpy() for output in outputs]


def choose_batch_sizes(crop: int, device: str) -> tuple[int, int]:
    """How many images at once to begin with, and at most, so that memory stays bounded."""
    images = _PIXELS_PER_BATCH // crop**2
    more = 1 if device == "cpu" else 4
    return more * min(max(images, 8), 256), more * min(max(4 * images, 8), 1024)


def resolve_device(name: str, precision: str) -> str:
    """The device that a name means here.

    Raises
    ------
    CallError
        If it is not there, or cannot compute in this precision.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and not torch.cuda.is_available():
        raise CallError("no CUDA device here; use --device cpu")
    if name != "cpu" and number >= torch.cuda.device_count():
        raise CallError(f"there are {torch.cuda.device_count()} CUDA devices here, from cuda:0")
    if precision == "tf32" and name == "cpu":
        raise CallError("--precision tf32 is for GPUs; on the processor use float32 or bf16")
    return name


def count_compute_threads() -> int:
    """Threads for arithmetic: a physical core each, fewer where torch was told so."""
    return min(torch.get_num_threads(), cpu.physical_cores())


class precision_context:
    """Sets torch's switches for a precision, and its threads; puts them back as they were."""

    def __init__(self, device: str, precision: str) -> None:
        self.tf32 = precision == "tf32"
        self._autocast: AbstractContextManager[Any] = nullcontext()
        if precision in _AUTOCAST_DTYPES:
            self._autocast = torch.autocast(device.split(":")[0], _AUTOCAST_DTYPES[precision])

    def __enter__(self) -> None:
        self._saved_threads = torch.get_num_threads()
        self._saved_flags = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        if count_compute_threads() != self._saved_threads:
            torch.set_num_threads(count_compute_threads())
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        self._autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._autocast.__exit__(*error)
        torch.set_float32_matmul_precision(self._saved_flags[0])
        torch.backends.cudnn.allow_tf32 = self._saved_flags[1]
        if torch.get_num_threads() != self._saved_threads:
            torch.set_num_threads(self._saved_threads)
