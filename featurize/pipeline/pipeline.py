"""Process rows: decode in threads, run in batches, write in a thread."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featurize.cache.writer import CacheWriter
from featurize.engines.batching import BatchRunner
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage, Prefetcher
from featurize.pipeline.stats import RunStats
from featurize.pipeline.write_behind import BackgroundWriter
from featurize.system import signals


def process_rows(
    job: ExtractionJob,
    writer: CacheWriter,
    content_index: ContentIndex,
    stats: RunStats,
    report: Callable[[RunStats], None],
) -> dict[int, bytes]:
    """Embed the images of a job, and write their rows to the cache.

    Memory is bounded by a few batches, for any number of rows. On an interrupt, computed rows are
    written and marked before `KeyboardInterrupt` is raised again.

    Parameters
    ----------
    job : ExtractionJob
    writer : CacheWriter
    content_index : ContentIndex
        Images found there are copied, not embedded.
    stats : RunStats
        Updated in place.
    report : callable
        Called with `stats` after every image.

    Returns
    -------
    dict of int to bytes
        With `ExtractionJob.returns_changed`, the SHA-256 of each row whose image has other bytes
        than recorded. They were not written.

    Raises
    ------
    EngineError
        If no engine can be opened, or one image does not fit into memory.
    DiskFullError, OutputError
        If rows cannot be written.
    """
    # Pillow's warnings about odd files do not help the user: the file is read, or fails with a
    # reason.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _process_rows(job, writer, content_index, stats, report)


def _process_rows(
    job: ExtractionJob,
    writer: CacheWriter,
    content_index: ContentIndex,
    stats: RunStats,
    report: Callable[[RunStats], None],
) -> dict[int, bytes]:
    changed_rows: dict[int, bytes] = {}
    prefetcher = Prefetcher(job, content_index, stats)
    background_writer = BackgroundWriter(job, writer, stats)
    # The network runs in a thread, so that an interrupt need not wait for a batch.
    network_thread = ThreadPoolExecutor(1, thread_name_prefix="network")
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
                background_writer.put([item], None)
            else:
                batch.append(item)
                if batch_runner is None:
                    batch_runner = network_thread.submit(BatchRunner, job.engine_selector).result()
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
                _run_batch(network_thread, batch_runner, batch, background_writer, stats)
                batch = []
                if network_thread.submit(batch_runner.maybe_upgrade, n_remaining).result():
                    stats.restart_rate()
                prefetcher.batch_size = batch_runner.batch_size
            report(stats)
        if batch_runner is not None and batch:
            _run_batch(network_thread, batch_runner, batch, background_writer, stats)
        prefetcher.finish()
        background_writer.close()
        report(stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        raise
    finally:
        network_thread.shutdown(wait=False, cancel_futures=True)
        prefetcher.stop()
        background_writer.drain()
    return changed_rows


def _run_batch(
    network_thread: ThreadPoolExecutor,
    batch_runner: BatchRunner,
    batch: list[PrefetchedImage],
    writer: BackgroundWriter,
    stats: RunStats,
) -> None:
    batch.sort(key=lambda item: item.row)  # consecutive rows are written at once
    pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
    features = network_thread.submit(batch_runner.run, pixels).result()
    stats.record_batch(len(batch), batch_runner.last_seconds)
    stats.engine, stats.engine_why = batch_runner.engine.name, batch_runner.reason
    for item in batch:
        item.pixels = None
    writer.put(batch, features)
