"""The compile engine: torch.compile on the processor, frozen weights, one batch size."""

import numpy as np
import torch
from torch import nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import ProcessorEngine, pad_batch
from featurize.engines.torch_settings import (
    choose_batch_sizes,
    precision_context,
    use_private_cache,
)
from featurize.images.preprocess import Preprocess


class TorchCompileEngine(ProcessorEngine):
    """Runs a cut network through torch.compile (inductor, C++), on the processor.

    The kernels are compiled for one batch size with the first batch, which takes tens of seconds.
    A smaller batch is padded with black images, whose features are dropped.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    precision : {"float32", "bf16", "fp16"}
    """

    name = "compile"
    device = "cpu"

    def __init__(self, module: nn.Module, preprocess: Preprocess, precision: str) -> None:
        self.precision = precision
        self.batch_size, _ = choose_batch_sizes(preprocess.crop, self.device)
        cache_options = use_private_cache()
        pixel_network = PixelNetwork(module, preprocess, channels_last=True)
        # Freezing folds batch norm into the convolutions and packs the weights.
        self._run = torch.compile(
            pixel_network, dynamic=False, options={"freezing": True, **cache_options}
        )

    @property
    def max_batch_size(self) -> int:
        """The batch size itself: another size would have to be compiled."""
        return self.batch_size

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; see `featurize.engines.base.Engine`.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer.
        """
        n_images = len(pixels)
        with torch.inference_mode(), precision_context(self.device, self.precision):
            outputs = self._run(torch.from_numpy(pad_batch(pixels, self.batch_size)))
            # Copy: the compiled code may reuse the memory of its outputs.
            return [np.array(output[:n_images].float().numpy()) for output in outputs]
