"""Embed the images of a job: decode in threads, run in batches, pass rows on to a sink."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.engines.batching import BatchRunner
from featurize.images.workers import DecoderPool
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage, Prefetcher
from featurize.pipeline.stats import RunStats
from featurize.system import signals


class RowSink(Protocol):
    """Takes the rows of a job as they are ready."""

    def put(self, items: list[PrefetchedImage], features: list[np.ndarray] | None) -> None:
        """Take rows.

        Parameters
        ----------
        items : list of PrefetchedImage
            n images.
        features : list of float32 arrays of shape (n, D), or None
            One per layer of the job. None for images that were not run.
        """
        ...

    def close(self) -> None:
        """Finish after the last row."""
        ...

    def drain(self) -> None:
        """Finish what was taken, after an error or an interrupt; do nothing after `close`."""
        ...


class NetworkThread:
    """Runs batches in a thread of its own, so that an interrupt need not wait for one.

    Parameters
    ----------
    selector : EngineSelector
        Opens the engine when `open` is first called.

    Attributes
    ----------
    n_later : int
        Images expected after the job at hand: a faster engine may be worth it for all of them.
    """

    def __init__(self, selector: EngineSelector) -> None:
        self.n_later = 0
        self._selector = selector
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._batch_runner: BatchRunner | None = None

    def open(self) -> BatchRunner:
        """Open the engine, unless it is open.

        Returns
        -------
        BatchRunner
        """
        if self._batch_runner is None:
            self._batch_runner = self._executor.submit(BatchRunner, self._selector).result()
        return self._batch_runner

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Embed a batch; see `BatchRunner.run`."""
        return self._executor.submit(self.open().run, pixels).result()

    def maybe_upgrade(self, n_remaining: int) -> bool:
        """Change to a faster engine if that saves time; see `BatchRunner.maybe_upgrade`."""
        n_images = n_remaining + self.n_later
        return self._executor.submit(self.open().maybe_upgrade, n_images).result()

    def close(self) -> None:
        """Start no further batch, and do not wait for the one that runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def embed_rows(
    job: ExtractionJob,
    content_index: ContentIndex,
    stats: RunStats,
    sink: RowSink,
    report: Callable[[RunStats], None],
    network: NetworkThread,
    decoders: DecoderPool | None = None,
) -> dict[int, bytes]:
    """Embed the images of a job, and pass their rows to a sink.

    Memory is bounded by a few batches, for any number of rows. On an interrupt, rows that were
    passed on are finished before `KeyboardInterrupt` is raised again.

    Parameters
    ----------
    job : ExtractionJob
    content_index : ContentIndex
        Images found there are copied, not embedded.
    stats : RunStats
        Updated in place.
    sink : RowSink
    report : callable
        Called with `stats` after every image.
    network : NetworkThread
        Stays open.
    decoders : DecoderPool, optional
        Stays open. Default one of the job's own.

    Returns
    -------
    dict of int to bytes
        With `ExtractionJob.returns_changed`, the SHA-256 of each row whose image has other bytes
        than recorded. They were not passed on.

    Raises
    ------
    EngineError
        If no engine can be opened, or one image does not fit into memory.
    DiskFullError, OutputError
        If the sink cannot write rows.
    """
    # Pillow's warnings about odd files do not help the user: the file is read, or fails with a
    # reason.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _embed_rows(job, content_index, stats, sink, report, network, decoders)


def _embed_rows(
    job: ExtractionJob,
    content_index: ContentIndex,
    stats: RunStats,
    sink: RowSink,
    report: Callable[[RunStats], None],
    network: NetworkThread,
    decoders: DecoderPool | None,
) -> dict[int, bytes]:
    changed_rows: dict[int, bytes] = {}
    prefetcher = Prefetcher(job, content_index, stats, decoders)
    try:
        batch: list[PrefetchedImage] = []
        batch_runner: BatchRunner | None = None
        n_remaining = len(job.rows)
        for item in prefetcher:
            if item is not None:
                n_remaining -= 1
            if item is None:
                pass
            elif item.is_changed:
                changed_rows[item.row] = item.digest
            elif item.pixels is None:
                sink.put([item], None)
            else:
                batch.append(item)
                if batch_runner is None:
                    batch_runner = network.open()
                    prefetcher.decoders.use_processes_if_worth(
                        batch_runner.engine.device, stats.workers, n_remaining
                    )
                prefetcher.batch_size = batch_runner.batch_size
            # Do not let one slow image delay a batch.
            if (
                batch_runner is not None
                and batch
                and (item is None or len(batch) >= batch_runner.batch_size)
            ):
                _run_batch(network, batch_runner, batch, sink, stats)
                batch = []
                if network.maybe_upgrade(n_remaining):
                    stats.restart_rate()
                prefetcher.batch_size = batch_runner.batch_size
            report(stats)
        if batch_runner is not None and batch:
            _run_batch(network, batch_runner, batch, sink, stats)
        prefetcher.finish()
        sink.close()
        report(stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        raise
    finally:
        prefetcher.stop()
        sink.drain()
    return changed_rows


def _run_batch(
    network: NetworkThread,
    batch_runner: BatchRunner,
    batch: list[PrefetchedImage],
    sink: RowSink,
    stats: RunStats,
) -> None:
    batch.sort(key=lambda item: item.row)  # consecutive rows are written at once
    pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
    features = network.run(pixels)
    stats.record_batch(len(batch), batch_runner.last_seconds)
    stats.engine, stats.engine_why = batch_runner.engine.name, batch_runner.reason
    for item in batch:
        item.pixels = None
    sink.put(batch, features)
