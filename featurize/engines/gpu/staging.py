"""Copies between a GPU and the host, under the arithmetic of other batches."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class GpuStaging:
    """Brings batches to a GPU and features back, with two batches in flight.

    Pixels are written to pinned memory, and copied on a stream of their own while the batch before
    is computed. There are two buffers, so a third batch waits for the first one's copy.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cuda:1``; first touched by `submit`.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._copy_stream: torch.cuda.Stream | None = None
        self._buffers: list[_PinnedBuffer] = []

    def submit(
        self, pixels: np.ndarray, size: int, compute: Callable[[Tensor], Sequence[Tensor]]
    ) -> "StagedFeatures":
        """Queue a batch; do not wait for it.

        Parameters
        ----------
        pixels : uint8 array of shape (B, crop, crop, 3)
        size : int
            Number of images that `compute` gets, at least B. What the further ones show is not
            defined.
        compute : callable
            From a uint8 Tensor of shape (size, crop, crop, 3) on the device to one Tensor of shape
            (size, D) per layer, which the next call may overwrite.

        Returns
        -------
        StagedFeatures
        """
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            if self._copy_stream is None:
                self._copy_stream = torch.cuda.Stream(self.device)
            shape = (size, *pixels.shape[1:])
            if not self._buffers or tuple(self._buffers[0].pinned.shape) != shape:
                self._buffers = [_PinnedBuffer(shape, self.device) for _ in range(2)]
                # Work queued on the current stream may still use this memory.
                self._copy_stream.wait_stream(current)
            buffer = self._buffers.pop(0)
            self._buffers.append(buffer)
            buffer.upload(pixels, self._copy_stream)
            current.wait_event(buffer.copied)
            outputs = compute(buffer.on_device)
            buffer.used.record(current)
            features = []
            for output in outputs:  # in the order of the stream: before the next call overwrites it
                host = torch.empty(output.shape, dtype=torch.float32, pin_memory=True)
                features.append(host.copy_(output.float(), non_blocking=True))
            finished = torch.cuda.Event()
            finished.record(current)
        return StagedFeatures(features, finished, len(pixels))


class StagedFeatures:
    """Features on their way from a GPU; see `featurize.engines.base.PendingFeatures`.

    Parameters
    ----------
    features : list of Tensor of shape (size, D)
        In pinned memory, written once `finished` has happened.
    finished : torch.cuda.Event
    n_images : int
        The rows that count.
    """

    def __init__(self, features: list[Tensor], finished: torch.cuda.Event, n_images: int) -> None:
        self._features, self._finished, self._n_images = features, finished, n_images

    def collect(self) -> list[np.ndarray]:
        """Wait for the features.

        Returns
        -------
        list of float32 arrays of shape (B, D)
            One per layer, copied from pinned memory.
        """
        self._finished.synchronize()
        return [np.array(layer.numpy()[: self._n_images]) for layer in self._features]


class _PinnedBuffer:
    """Memory for one batch: pinned on the host, and on the device.

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
        """Copy pixels to the device once the batch before in this buffer has been used."""
        self.copied.synchronize()  # the pinned memory is free; returns at once if never recorded
        self.pinned[: len(pixels)].copy_(torch.from_numpy(pixels))
        stream.wait_event(self.used)
        with torch.cuda.stream(stream):
            self.on_device.copy_(self.pinned, non_blocking=True)
            self.copied.record(stream)
