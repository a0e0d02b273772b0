"""The CUDA engine: a compiled network replayed as CUDA graphs."""

import numpy as np
import torch
from torch import nn

from featurize.backbones.gpu_network import to_gpu_network
from featurize.engines.gpu.staging import GpuStaging, StagedFeatures
from featurize.engines.torch_settings import (
    AUTOCAST_DTYPES,
    choose_batch_sizes,
    precision_context,
    use_private_cache,
)
from featurize.images.preprocess import Preprocess


class CudaGraphEngine:
    """Runs a cut network on one GPU, compiled (inductor) and replayed as CUDA graphs.

    The kernels are compiled, and a graph is recorded, for one batch size. A smaller batch is run
    as one of that size, and what is not its own is dropped.

    Parameters
    ----------
    module : nn.Module
        From a normalised float batch to a tuple of features.
    preprocess : Preprocess
        Its ``crop``, ``mean`` and ``std``.
    device : str
        ``cuda`` or ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}
    """

    name = "cuda"
    max_in_flight = 2

    def __init__(
        self, module: nn.Module, preprocess: Preprocess, *, device: str, precision: str
    ) -> None:
        self.device, self.precision = device, precision
        self.batch_size, _ = choose_batch_sizes(preprocess.crop, device)
        cache_options = use_private_cache()
        pixel_network = to_gpu_network(module, preprocess, device, AUTOCAST_DTYPES.get(precision))
        # Equals the mode "reduce-overhead", which takes no further options.
        self._run = torch.compile(
            pixel_network, dynamic=False, options={"triton.cudagraphs": True, **cache_options}
        )
        self._staging = GpuStaging(device)

    @property
    def max_batch_size(self) -> int:
        """The batch size itself: another size would have to be compiled."""
        return self.batch_size

    def submit(self, pixels: np.ndarray) -> StagedFeatures:
        """Start to embed a batch; see `featurize.engines.base.Engine`.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)

        Returns
        -------
        StagedFeatures
        """
        with torch.inference_mode(), precision_context(self.device, self.precision):
            torch.compiler.cudagraph_mark_step_begin()
            return self._staging.submit(pixels, max(len(pixels), self.batch_size), self._run)

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
        return self.submit(pixels).collect()
