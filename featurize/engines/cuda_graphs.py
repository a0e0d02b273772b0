"""The CUDA engine: a compiled network replayed as CUDA graphs; copies overlap with compute."""

import numpy as np
import torch
from torch import Tensor, nn

from featurize.backbones.gpu_network import to_gpu_network
from featurize.engines.base import pad_batch
from featurize.engines.torch_settings import (
    AUTOCAST_DTYPES,
    choose_batch_sizes,
    precision_context,
    use_private_cache,
)
from featurize.images.preprocess import Preprocess

PARTS_PER_BATCH = 4  # one part is computed while the next is copied


class CudaGraphEngine:
    """Runs a cut network on one GPU, compiled (inductor) and replayed as CUDA graphs.

    A batch is split into parts of one fixed size. Each part is written to pinned memory as uint8,
    and copied on a separate stream while the previous part is computed. There are two buffers.

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
        self._copy_stream = torch.cuda.Stream(device)
        self._buffers: list[_PinnedBuffer] = []

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
        size = -(-self.batch_size // PARTS_PER_BATCH)
        if not self._buffers or len(self._buffers[0].pinned) != size:
            shape = (size, *pixels.shape[1:])
            self._buffers = [_PinnedBuffer(shape, self.device) for _ in range(2)]
            # Work queued on the current stream may still use this memory.
            self._copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        parts: list[list[Tensor]] = []
        with (
            torch.cuda.device(self.device),
            torch.inference_mode(),
            precision_context(self.device, self.precision),
        ):
            for number, start in enumerate(range(0, len(pixels), size)):
                buffer = self._buffers[number % 2]
                buffer.upload(pad_batch(pixels[start : start + size], size), self._copy_stream)
                parts.append(self._start_part(buffer))
            torch.cuda.synchronize(self.device)
        features = (
            np.concatenate([part.numpy() for part in layer]) for layer in zip(*parts, strict=True)
        )
        return [layer[: len(pixels)] for layer in features]

    def _start_part(self, buffer: "_PinnedBuffer") -> list[Tensor]:
        """Queue a part; its features are in pinned memory after the next synchronisation."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(buffer.copied)
        torch.compiler.cudagraph_mark_step_begin()
        outputs = self._run(buffer.on_device)
        buffer.used.record(current)
        features = []
        for output in outputs:  # copied in stream order, before the next replay overwrites them
            host = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
            features.append(host.copy_(output.float(), non_blocking=True))
        return features


class _PinnedBuffer:
    """Memory for one part: pinned on the host, and on the device.

    Parameters
    ----------
    shape : tuple of int
        (images, crop, crop, 3).
    device : str
    """

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.on_device = torch.empty(shape, dtype=torch.uint8, device=device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def upload(self, pixels: np.ndarray, stream: torch.cuda.Stream) -> None:
        """Copy pixels to the device once the previous part in this buffer has been used."""
        self.copied.synchronize()  # the pinned memory is free; returns at once if never recorded
        self.pinned.copy_(torch.from_numpy(pixels))
        stream.wait_event(self.used)
        with torch.cuda.stream(stream):
            self.on_device.copy_(self.pinned, non_blocking=True)
            self.copied.record(stream)
