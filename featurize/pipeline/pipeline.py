"""Process rows: decode in threads, run in batches, write in a thread."""

from collections.abc import Callable

from featurize.cache.writer import CacheWriter
from featurize.pipeline.content_index import ContentIndex
from featurize.pipeline.embedding import NetworkThread, embed_rows
from featurize.pipeline.prefetch import ExtractionJob
from featurize.pipeline.stats import RunStats
from featurize.pipeline.write_behind import BackgroundWriter


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
    sink = BackgroundWriter(job, writer, stats)
    network = NetworkThread(job.engine_selector)
    try:
        return embed_rows(job, content_index, stats, sink, report, network)
    finally:
        network.close()
        sink.drain()
