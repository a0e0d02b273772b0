"""The CUDA engine: compiled, replayed as CUDA graphs, copies and arithmetic side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featurize.engines.compile_cache import use_private_cache
from featurize.engines.compiled import filled_up
from featurize.engines.eager import Arithmetic, batch_sizes
from featurize.engines.prepared import Prepared

PARTS = 4  # of a batch: while one is computed, the next is copied


class Graphed:
    """Runs a cut network on one GPU, compiled (inductor) and replayed as CUDA graphs.

    A batch goes in parts of one fixed size. Each is laid as uint8 into pinned memory and copied by
    a stream of its own while the part before it is computed; there are two places for parts.

    Parameters
    ----------
    module : nn.Module
    preprocess : mapping
        Its ``crop``, ``mean`` and ``std``.
    device : str
        ``cuda`` or ``cuda:1``.
    precision : {"float32", "tf32", "bf16", "fp16"}
    """

    name = "cuda"

    def __init__(
        self, module: nn.Module, preprocess: Mapping[str, Any], *, device: str, precision: str
    ) -> None:
        self.device, self.precision = device, precision
        self.batch_size, _ = batch_sizes(int(preprocess["crop"]), device)
        private = use_private_cache()
        prepared = Prepared(module, preprocess, packed=True).to(device)
        # CUDA graphs: what the mode "reduce-overhead" is, to which no option may be added.
        self._run = torch.compile(
            prepared, dynamic=False, options={"triton.cudagraphs": True, **private}
        )
        self._copies = torch.cuda.Stream(device)
        self._places: list[_Place] = []

    @property
    def largest_batch(self) -> int:
        """Another size would be compiled again."""
        return self.batch_size

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch: uint8 (B, crop, crop, 3) in, float32 (B, D) out, one a layer."""
        size = -(-self.batch_size // PARTS)
        if not self._places or len(self._places[0].pinned) != size:
            shape = (size, *pixels.shape[1:])
            self._places = [_Place(shape, self.device) for _ in range(2)]
            # Their memory may have been somebody else's until just now.
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        parts: list[list[Tensor]] = []
        with (
            torch.cuda.device(self.device),
            torch.inference_mode(),
            Arithmetic(self.device, self.precision),
        ):
            for number, start in enumerate(range(0, len(pixels), size)):
                place = self._places[number % 2]
                place.take(filled_up(pixels[start : start + size], size), self._copies)
                parts.append(self._compute(place))
            torch.cuda.synchronize(self.device)
        joined = (
            np.concatenate([part.numpy() for part in layer]) for layer in zip(*parts, strict=True)
        )
        return [layer[: len(pixels)] for layer in joined]

    def _compute(self, place: "_Place") -> list[Tensor]:
        """Start on a part; its features arrive in pinned memory by the next synchronisation."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(place.copied)
        torch.compiler.cudagraph_mark_step_begin()
        outputs = self._run(place.there)
        place.used.record(current)
        found = []
        for output in outputs:  # copied before the next replay, in stream order, overwrites them
            host = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
            found.append(host.copy_(output.float(), non_blocking=True))
        return found


class _Place:
    """Memory for one part: pinned on the host, and on the device."""

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        self.pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self.there = torch.empty(shape, dtype=torch.uint8, device=device)
        self.copied, self.used = torch.cuda.Event(), torch.cuda.Event()

    def take(self, pixels: np.ndarray, stream: torch.cuda.Stream) -> None:
        """Copy pixels to the device, as soon as the part that was here is used up."""
        self.copied.synchronize()  # the pinned pixels have gone; an event not recorded is over
        self.pinned.copy_(torch.from_numpy(pixels))
        stream.wait_event(self.used)
        with torch.cuda.stream(stream):
            self.there.copy_(self.pinned, non_blocking=True)
            self.copied.record(stream)
