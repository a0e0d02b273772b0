"""Images to rows: decode ahead in threads, batch, run, write behind."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from featurize import signals
from featurize.ahead import DecodeAhead, Prepared, Task
from featurize.batches import Batches
from featurize.behind import WriteBehind
from featurize.contents import Contents
from featurize.measure import Measure
from featurize.writer import CacheWriter


def pump(
    task: Task,
    writer: CacheWriter,
    contents: Contents,
    measure: Measure,
    report: Callable[[Measure], None],
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
        return _pump(task, writer, contents, measure, report)


def _pump(
    task: Task,
    writer: CacheWriter,
    contents: Contents,
    measure: Measure,
    report: Callable[[Measure], None],
) -> list[int]:
    changed: list[int] = []
    ahead = DecodeAhead(task, contents, measure)
    behind = WriteBehind(task, writer, measure)
    # The network runs in a thread of its own: an interrupt does not have to wait for a batch.
    network = ThreadPoolExecutor(1, thread_name_prefix="network")
    try:
        batch: list[Prepared] = []
        batches: Batches | None = None
        left = len(task.rows)
        for item in ahead:
            if item is not None:
                left -= 1
            if item is None:
                pass
            elif item.changed:
                changed.append(item.row)
            elif item.pixels is None:
                behind.put([item], None)
            else:
                batch.append(item)
                if batches is None:
                    batches = network.submit(lambda: Batches(task.choice())).result()
                    ahead.decoders.consider(batches.engine.device, measure.workers, left)
                ahead.batch_size = batches.size
            # A batch that has to wait for one slow image goes without it.
            if batches is not None and batch and (item is None or len(batch) >= batches.size):
                _run(network, batches, batch, behind, measure)
                batch = []
                if network.submit(batches.improve, left).result():
                    measure.restart()
                ahead.batch_size = batches.size
            report(measure)
        if batches is not None and batch:
            _run(network, batches, batch, behind, measure)
        ahead.finish()
        behind.close()
        report(measure)
    except KeyboardInterrupt:
        signals.take()
        raise
    finally:
        network.shutdown(wait=False, cancel_futures=True)
        ahead.stop()
        behind.abandon()
    return changed


def _run(
    network: ThreadPoolExecutor,
    batches: Batches,
    batch: list[Prepared],
    behind: WriteBehind,
    measure: Measure,
) -> None:
    batch.sort(key=lambda item: item.row)  # neighbouring rows are written at once
    pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
    features = network.submit(batches.run, pixels).result()
    measure.ran(len(batch), batches.seconds)
    measure.engine, measure.engine_why = batches.engine.name, batches.why
    for item in batch:
        item.pixels = None
    behind.put(batch, features)
