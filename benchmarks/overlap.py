"""Whether a device waits: the busy share of an engine that takes 16 ms a batch.

The engine stands for a GPU: its batches take their time one after the other, on no core, and two
of them may be in flight. Images come read and decoded, 224 pixels wide. What is left is what a run
does between two batches: it gathers, copies, hands over, and writes rows of 2,048 numbers. Beside
it: the same with turns taken, where nothing is gathered while a batch runs. The limit: 0.95.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from machine import describe
from photos import photos
from table import Row, show

from featurize import Backbone, run
from featurize.extraction import setup
from featurize.pipeline import embedding
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage

SIDE = 224
DIM = 2048


class Device:
    """Carries out one batch after the other, each in a fixed time."""

    name, device, max_in_flight = "eager", "cpu", 2

    def __init__(self, seconds: float, batch_size: int) -> None:
        self.seconds, self.batch_size, self.max_batch_size = seconds, batch_size, batch_size
        self.free_at = 0.0  # when what is submitted will be done
        self.begins: list[float] = []

    def submit(self, pixels: np.ndarray) -> "Pending":
        begin = max(time.perf_counter(), self.free_at)
        self.free_at = begin + self.seconds
        self.begins.append(begin)
        return Pending(self.free_at, len(pixels))

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self.submit(pixels).collect()

    @property
    def busy_share(self) -> float:
        """Of the middle of the run, when batches are full and the writer has begun."""
        begins = self.begins[3:-3]
        return self.seconds * (len(begins) - 1) / (begins[-1] - begins[0])


class Pending:
    def __init__(self, ready_at: float, n_images: int) -> None:
        self.ready_at, self.n_images = ready_at, n_images

    def collect(self) -> list[np.ndarray]:
        time.sleep(max(0.0, self.ready_at - time.perf_counter()))
        return [np.ones((self.n_images, DIM), np.float32)]


class ReadyImages:
    """In the place of `Prefetcher`: every image is there at once."""

    batch_size = 0

    def __init__(self, job: ExtractionJob, *_: object) -> None:
        self.job, self.decoders = job, mock.Mock()
        self.pixels = np.zeros((SIDE, SIDE, 3), np.uint8)

    def __iter__(self) -> Iterator[PrefetchedImage]:
        listing = self.job.listing
        for row in self.job.rows.tolist():
            size, stamp = int(listing.sizes[row]), int(listing.stamps[row])
            digest = row.to_bytes(32)
            yield PrefetchedImage(row, size, stamp, digest, self.pixels)

    def finish(self) -> None:
        pass

    def stop(self) -> None:
        pass


def measure(folder: Path, seconds: float, batch_size: int, *, takes_turns: bool) -> float:
    from torch import nn

    device = Device(seconds, batch_size)
    network = nn.Sequential(nn.Conv2d(3, DIM, 1, stride=32), nn.ReLU())
    recipe = {"resize": SIDE, "crop": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3}
    submit = embedding._BatchQueue.submit

    def submit_and_wait(queue: "embedding._BatchQueue", *batch: object) -> None:
        submit(queue, *batch)  # type: ignore[arg-type]
        while queue.pass_on_next():
            pass

    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch.object(setup, "open_engine", return_value=device),
        mock.patch.object(embedding, "Prefetcher", ReadyImages),
        mock.patch.object(
            embedding._BatchQueue, "submit", submit_and_wait if takes_turns else submit
        ),
    ):
        backbone = Backbone(network, name="wide", preprocess=recipe)
        run(folder, Path(home) / "c.h5", backbone=backbone, layers="1:avg")
    return device.busy_share


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--ms", type=float, default=16.0, help="of a batch")
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    print(describe())
    folder = photos(given.images, (8, 8))
    rows: list[Row] = []
    for batch_size in (32, 64, 128, 256):
        row: Row = {"images a batch": batch_size, "images/s at most": 1e3 * batch_size / given.ms}
        for name, takes_turns in (("turns taken", True), ("two in flight", False)):
            row[name] = statistics.median(
                measure(folder, given.ms / 1e3, batch_size, takes_turns=takes_turns)
                for _ in range(given.rounds)
            )
        rows.append(row)
    show(f"Busy share of an engine that takes {given.ms:g} ms a batch", rows, "The limit: 0.95.")


if __name__ == "__main__":
    main()
