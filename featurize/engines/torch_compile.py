"""The compiled engine: torch.compile on the processor, weights folded in, one batch size."""

import numpy as np
import torch
from torch import nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import pad_batch
from featurize.engines.torch_settings import (
    choose_batch_sizes,
    precision_context,
    use_private_cache,
)
from featurize.images.preprocess import Preprocess


class TorchCompileEngine:
    """Runs a cut network through torch.compile (inductor, C++), on the processor.

    The kernels are made for one batch size when the first batch comes, which takes tens of
    seconds; a smaller batch is filled up with black images, and those are dropped again.

    Parameters
    ----------
    module : nn.Module
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    precision : {"float32", "bf16", "fp16"}
    """

    name = "compile"
    device = "cpu"

    def __init__(self, module: nn.Module, preprocess: Preprocess, precision: str) -> None:
        self.precision = precision
        self.batch_size, _ = choose_batch_sizes(preprocess.crop, self.device)
        private = use_private_cache()
        prepared = PixelNetwork(module, preprocess, channels_last=True)
        # Freezing folds batch norm into the convolutions and packs weights for their kernels.
        self._run = torch.compile(prepared, dynamic=False, options={"freezing": True, **private})

    @property
    def max_batch_size(self) -> int:
        """Its batch size: another one would have to be compiled."""
        return self.batch_size

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        count = len(pixels)
        with torch.inference_mode(), precision_context(self.device, self.precision):
            outputs = self._run(torch.from_numpy(pad_batch(pixels, self.batch_size)))
            # Copied: what the compiled code gives may be its own memory, used again.
            return [np.array(output[:count].float().numpy()) for output in outputs]
