"""Images to rows: decode ahead in threads, batch, run, write behind."""

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
) -> list[int]:
    """Bring the rows of a task into the cache.

    Memory is bounded by a few batches, whatever the number of rows. On an interrupt what
    has been computed is written and marked before the interrupt goes on.

    Returns
    -------
    list of int
        Rows whose file has other bytes than `Task.recorded` says, where that matters.
    """
    # What Pillow thinks of odd files is no news: they are read, or fail with a reason.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _process_rows(job, writer, content_index, stats, report)


def _process_rows(
    job: ExtractionJob,
    writer: CacheWriter,
    content_index: ContentIndex,
    stats: RunStats,
    report: Callable[[RunStats], None],
) -> list[int]:
    changed: list[int] = []
    ahead = Prefetcher(job, content_index, stats)
    behind = BackgroundWriter(job, writer, stats)
    # The network runs in a thread of its own: an interrupt does not have to wait for a batch.
    network = ThreadPoolExecutor(1, thread_name_prefix="network")
    try:
        batch: list[PrefetchedImage] = []
        batches: BatchRunner | None = None
        left = len(job.rows)
        for item in ahead:
            if item is not None:
                left -= 1
            if item is None:
                pass
            elif item.is_changed:
                changed.append(item.row)
            elif item.pixels is None:
                behind.put([item], None)
            else:
                batch.append(item)
                if batches is None:
                    batches = network.submit(BatchRunner, job.engine_selector).result()
                    ahead.decoders.use_processes_if_worth(
                        batches.engine.device, stats.workers, left
                    )
                ahead.batch_size = batches.batch_size
            # A batch that has to wait for one slow image goes without it.
            if batches is not None and batch and (item is None or len(batch) >= batches.batch_size):
                _run_batch(network, batches, batch, behind, stats)
                batch = []
                if network.submit(batches.maybe_upgrade, left).result():
                    stats.restart_rate()
                ahead.batch_size = batches.batch_size
            report(stats)
        if batches is not None and batch:
            _run_batch(network, batches, batch, behind, stats)
        ahead.finish()
        behind.close()
        report(stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        raise
    finally:
        network.shutdown(wait=False, cancel_futures=True)
        ahead.stop()
        behind.drain()
    return changed


def _run_batch(
    network: ThreadPoolExecutor,
    batches: BatchRunner,
    batch: list[PrefetchedImage],
    writer: BackgroundWriter,
    stats: RunStats,
) -> None:
    batch.sort(key=lambda item: item.row)  # neighbouring rows are written at once
    pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
    features = network.submit(batches.run, pixels).result()
    stats.record_batch(len(batch), batches.last_seconds)
    stats.engine, stats.engine_why = batches.engine.name, batches.reason
    for item in batch:
        item.pixels = None
    writer.put(batch, features)
