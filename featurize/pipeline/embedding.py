"""Embed the images of a job: gather batches, run them meanwhile, pass rows on to a sink."""

import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.engines.batching import BatchRunner
from featurize.images.workers.pool import DecoderPool
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


class EmbeddedBatch(NamedTuple):
    """A batch that went through the network.

    Attributes
    ----------
    features : list of float32 arrays of shape (B, D)
        One per layer.
    seconds : float
        Time in the network, without that of the batch before.
    engine, engine_why : str
        The engine, and why it was chosen.
    is_upgraded : bool
        Whether a faster engine was opened after it.
    """

    features: list[np.ndarray]
    seconds: float
    engine: str
    engine_why: str
    is_upgraded: bool


class NetworkThread:
    """Runs batches in a thread of its own.

    The next batch is gathered meanwhile, and an interrupt need not wait for one that runs. An
    engine may have several batches in flight. It is used in this thread alone: compiled graphs of
    torch belong to the thread that made them.

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
        self._in_flight: deque[tuple[Future[EmbeddedBatch], int]] = deque()
        self._n_waiting, self._lock = 0, threading.Lock()

    def open(self) -> BatchRunner:
        """Open the engine, unless it is open.

        Returns
        -------
        BatchRunner
            To be looked at, not to be called.
        """
        if self._batch_runner is None:
            self._batch_runner = self._executor.submit(BatchRunner, self._selector).result()
        return self._batch_runner

    def submit(self, items: list[PrefetchedImage], n_remaining: int) -> "Future[EmbeddedBatch]":
        """Embed a batch.

        Parameters
        ----------
        items : list of PrefetchedImage
            With pixels, which are released once they are copied.
        n_remaining : int
            Images of the job that are not submitted yet.

        Returns
        -------
        Future of EmbeddedBatch
            Batches are done in the order they were submitted.
        """
        self.open()
        future: Future[EmbeddedBatch] = Future()
        with self._lock:
            self._n_waiting += 1
        self._executor.submit(self._process, items, n_remaining, future)
        return future

    def close(self) -> None:
        """Start no further batch, and do not wait for the one that runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _process(
        self, items: list[PrefetchedImage], n_remaining: int, future: "Future[EmbeddedBatch]"
    ) -> None:
        with self._lock:
            self._n_waiting -= 1
        batch_runner = self.open()
        try:
            pixels = np.stack([item.pixels for item in items if item.pixels is not None])
            for item in items:
                item.release_pixels()
        except BaseException as error:  # raised again in the main thread
            future.set_exception(error)
        else:
            batch_runner.submit(pixels)
            self._in_flight.append((future, n_remaining))
        # Where a batch waits, it is submitted before a wait for the one that runs.
        while self._in_flight and (
            len(self._in_flight) >= batch_runner.max_in_flight or not self._n_waiting
        ):
            self._collect(batch_runner)

    def _collect(self, batch_runner: BatchRunner) -> None:
        future, n_remaining = self._in_flight.popleft()
        try:
            features = batch_runner.collect()
            seconds = batch_runner.last_seconds
            engine, why = batch_runner.engine.name, batch_runner.reason
            is_upgraded = batch_runner.maybe_upgrade(n_remaining + self.n_later)
        except BaseException as error:  # raised again in the main thread
            future.set_exception(error)
        else:
            future.set_result(EmbeddedBatch(features, seconds, engine, why, is_upgraded))


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

    Memory is bounded for any number of rows: by the batches that `Prefetcher` has ready, the one
    that is gathered, those in flight and one that waits for them. On an interrupt, rows that were
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
    batches = _BatchQueue(network, sink, stats)
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
                batches.submit(batch, n_remaining)
                batch = []
            batches.pass_on_finished()
            report(stats)
        if batch:
            batches.submit(batch, n_remaining)
        while batches.pass_on_next():
            report(stats)
        prefetcher.finish()
        sink.close()
        report(stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        batches.pass_on_finished()
        raise
    finally:
        prefetcher.stop()
        sink.drain()
    return changed_rows


class _BatchQueue:
    """The batches of one job that are in the network, in their order.

    Parameters
    ----------
    network : NetworkThread
    sink : RowSink
    stats : RunStats
        Updated in place.
    """

    def __init__(self, network: NetworkThread, sink: RowSink, stats: RunStats) -> None:
        self._network, self._sink, self._stats = network, sink, stats
        self._submitted: deque[tuple[list[PrefetchedImage], Future[EmbeddedBatch]]] = deque()

    def submit(self, batch: list[PrefetchedImage], n_remaining: int) -> None:
        """Hand a batch to the network; wait while it has as many as it can take, and one more."""
        batch.sort(key=lambda item: item.row)  # consecutive rows are written at once
        self._submitted.append((batch, self._network.submit(batch, n_remaining)))
        while len(self._submitted) > self._network.open().max_in_flight + 1:
            self.pass_on_next()

    def pass_on_finished(self) -> None:
        """Pass the rows of finished batches to the sink."""
        while self._submitted and self._submitted[0][1].done():
            self.pass_on_next()

    def pass_on_next(self) -> bool:
        """Wait for the first batch and pass its rows to the sink; return False if there is none."""
        if not self._submitted:
            return False
        batch, future = self._submitted[0]
        embedded = future.result()
        self._submitted.popleft()
        self._stats.record_batch(len(batch), embedded.seconds)
        self._stats.engine, self._stats.engine_why = embedded.engine, embedded.engine_why
        if embedded.is_upgraded:
            self._stats.restart_rate()
        self._sink.put(batch, embedded.features)
        return True
