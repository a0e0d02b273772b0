"""The eager engine: plain torch, on the processor or on one GPU."""

import numpy as np
import torch
from torch import nn

from featurize.backbones.gpu_network import to_gpu_network
from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import PendingFeatures, ReadyFeatures
from featurize.engines.gpu.staging import GpuStaging
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
        self.max_in_flight = 1 if device == "cpu" else 2
        self._staging = GpuStaging(device)

    def submit(self, pixels: np.ndarray) -> PendingFeatures:
        """Start to embed a batch; see `featurize.engines.base.Engine`.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        PendingFeatures
        """
        if self.device == "cpu":
            return ReadyFeatures(self.run(pixels))
        with torch.inference_mode(), precision_context(self.device, self.precision):
            return self._staging.submit(pixels, len(pixels), self.module)

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
        if self.device != "cpu":
            return self.submit(pixels).collect()
        with torch.inference_mode(), precision_context(self.device, self.precision):
            outputs = self.module(torch.from_numpy(pixels))
            return [output.float().numpy() for output in outputs]
