"""The plain engine: torch as it is, on the processor or on one GPU."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from featurize.errors import CallError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PIXELS_A_BATCH = 32 * 224 * 224


class Eager:
    """Runs a cut network with torch's own kernels.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
    preprocess : mapping
        Its ``crop``, ``mean`` and ``std``.
    device : str
        ``auto`` takes a GPU where there is one; else ``cpu``, ``cuda``, ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}
        float32 means float32: the faster formats are used only where they are asked for.
    """

    def __init__(
        self, module: nn.Module, preprocess: Mapping[str, Any], *, device: str, precision: str
    ) -> None:
        self.device = device_of(device, precision)
        self.precision = precision
        self.module = module.to(self.device)
        self._mean = torch.tensor(preprocess["mean"], device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess["std"], device=self.device).view(1, 3, 1, 1)
        per_batch = _PIXELS_A_BATCH // int(preprocess["crop"]) ** 2
        self.batch_size = min(max(per_batch, 8), 256) * (4 if self.device != "cpu" else 1)

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        with torch.inference_mode(), _Float32(self.precision), self._autocast():
            x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            x = x.sub_(self._mean).div_(self._std)
            return [output.float().cpu().numpy() for output in self.module(x)]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision not in _AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.split(":")[0], _AUTOCAST[self.precision])


def device_of(name: str, precision: str) -> str:
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


class _Float32:
    """Sets torch's switches for float32 arithmetic, and puts them back as they were."""

    def __init__(self, precision: str) -> None:
        self.tf32 = precision == "tf32"

    def __enter__(self) -> None:
        self._before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._before[0])
        torch.backends.cudnn.allow_tf32 = self._before[1]
