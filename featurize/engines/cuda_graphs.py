"""The CUDA engine: compiled, replayed as CUDA graphs, copies and arithmetic side by side."""

import numpy as np
import torch
from torch import Tensor, nn

from featurize.backbones.pixel_network import PixelNetwork
from featurize.engines.base import pad_batch
from featurize.engines.torch_settings import (
    choose_batch_sizes,
    precision_context,
    use_private_cache,
)
from featurize.images.preprocess import Preprocess

PARTS_PER_BATCH = 4  # of a batch: while one is computed, the next is copied


class CudaGraphEngine:
    """Runs a cut network on one GPU, compiled (inductor) and replayed as CUDA graphs.

    A batch goes in parts of one fixed size. Each is laid as uint8 into pinned memory and copied by
    a stream of its own while the part before it is computed; there are two places for parts.

    Parameters
    ----------
    module : nn.Module
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
        private = use_private_cache()
        prepared = PixelNetwork(module, preprocess, channels_last=True).to(device)
        # CUDA graphs: what the mode "reduce-overhead" is, to which no option may be added.
        self._run = torch.compile(
            prepared, dynamic=False, options={"triton.cudagraphs": True, **private}
        )
        self._copy_stream = torch.cuda.Stream(device)
        self._buffers: list[_PinnedBuffer] = []

    @property
    def max_batch_size(self) -> int:
        """Its batch size: another one would have to be compiled."""
        return self.batch_size

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        size = -(-self.batch_size // PARTS_PER_BATCH)
        if not self._buffers or len(self._buffers[0].pinned) != size:
            shape = (size, *pixels.shape[1:])
            self._buffers = [_PinnedBuffer(shape, self.device) for _ in range(2)]
            # Their memory may have been somebody else's until just now.
            self._copy_stream.wait_stream(torch.cuda.current_stream(self.device))
        parts: list[list[Tensor]] = []
        with (
            torch.cuda.device(self.device),
            torch.inference_mode(),
            precision_context(self.device, self.precision),
        ):
            for number, start in enumerate(range(0, len(pixels), size)):
                place = self._buffers[number % 2]
                place.upload(pad_batch(pixels[start : start + size], size), self._copy_stream)
                parts.append(self._start_part(place))
            torch.cuda.synchronize(self.device)
        joined = (
            np.concatenate([part.numpy() for part in layer]) for layer in zip(*parts, strict=True)
        )
        return [layer[: len(pixels)] for layer in joined]

    def _start_part(self, place: "_PinnedBuffer") -> list[Tensor]:
        """Start on a part; its features arrive in pinned memory by the next synchronisation."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(place.copied)
        torch.compiler.cudagraph_mark_step_begin()
        outputs = self._run(place.on_device)
        place.used.record(current)
        found = []
        for output in outputs:  # copied before the next replay, in stream order, overwrites them
            host = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
            found.append(host.copy_(output.float(), non_blocking=True))
        return found


class _PinnedBuffer:
    """Memory for one part: pinned on the host, and on the device."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.on_device = torch.empty(shape, dtype=torch.uint8, device=device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def upload(self, pixels: np.ndarray, stream: torch.cuda.Stream) -> None:
        """Copy pixels to the device, as soon as the part that was here is used up."""
        self.copied.synchronize()  # the pinned pixels have gone; an event not recorded is over
        self.pinned.copy_(torch.from_numpy(pixels))
        stream.wait_event(self.used)
        with torch.cuda.stream(stream):
            self.on_device.copy_(self.pinned, non_blocking=True)
            self.copied.record(stream)
