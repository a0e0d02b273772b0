"""The eager engine: plain torch, on the processor or on one GPU."""

import numpy as np
import torch
from torch import nn

from featurize.backbones.gpu_network import to_gpu_network
from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.torch_settings import (
    AUTOCAST_DTYPES,
    choose_batch_sizes,
    precision_context,
)
from featurize.images.preprocess import Preprocess


class EagerEngine:
    """Runs a cut network with torch's own kernels.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    device : str
        ``cpu``, ``cuda`` or ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}
    """

    name = "eager"

    def __init__(
        self, module: nn.Module, preprocess: Preprocess, *, device: str, precision: str
    ) -> None:
        self.device, self.precision = device, precision
        self.crop = preprocess.crop
        self.module = (
            PixelNetwork(module, preprocess)
            if device == "cpu"
            else to_gpu_network(module, preprocess, device, AUTOCAST_DTYPES.get(precision))
        )
        self.batch_size, self.max_batch_size = choose_batch_sizes(self.crop, self.device)

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
        with torch.inference_mode(), precision_context(self.device, self.precision):
            outputs = self.module(torch.from_numpy(pixels).to(self.device))
            return [output.float().cpu().numpy() for output in outputs]
