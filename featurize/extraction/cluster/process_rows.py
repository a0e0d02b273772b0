"""Process rows on a cluster: workers compute, this process writes."""

import os
import queue
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize import errors
from featurize.cache.writer import CacheWriter
from featurize.errors import EngineError, HeadgraftError
from featurize.extraction.cluster.actor import Featurizer, NetworkPlan, WorkerArguments, WorkerJob
from featurize.extraction.cluster.blocks import (
    SourceParts,
    choose_block_rows,
    make_place_tables,
    split_blocks,
)
from featurize.extraction.cluster.fetching import FetchedTables
from featurize.extraction.cluster.ledger import News, Problem
from featurize.extraction.cluster.results import KNOWN, Results, read_result_table
from featurize.extraction.cluster.session import ClusterSession
from featurize.pipeline.content_index import PREFIX_DTYPE, ContentIndex
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage
from featurize.pipeline.stats import RunStats
from featurize.pipeline.write_behind import BackgroundWriter
from featurize.progress import Say
from featurize.system import signals
from featurize.text import format_count
from featurize.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

    from featurize.backbones.backbone import Backbone

MAX_LOSSES, MAX_LOSS_SHARE = 20, 0.01  # lost workers: a number, and for each row of the job
AHEAD = 1  # tables of results that are fetched before they are asked for
LOOK_SECONDS = 2.0  # without a table; then the ledger is asked for news
PATIENCE_SECONDS = 60.0  # until it is said that no worker has begun
_IDLE = (
    "no worker has begun yet: the cluster's cores or GPUs may be taken, or its machines still start"
)


def process_rows(
    job: ExtractionJob,
    writer: CacheWriter,
    content_index: ContentIndex,
    stats: RunStats,
    report: Callable[[RunStats], None],
    *,
    session: ClusterSession,
    backbone: "Backbone",
    network: NetworkPlan,
    say: Say,
) -> dict[int, bytes]:
    """Embed the images of a job on a cluster, and write their rows to the cache.

    Rows may come twice, where a worker is lost after it has computed some: they have numbers, and
    those that came before are left out. On an interrupt, rows that came are written and marked
    before `KeyboardInterrupt` is raised again.

    Parameters
    ----------
    job : ExtractionJob
    writer : CacheWriter
    content_index : ContentIndex
        Images found there are copied, not embedded.
    stats : RunStats
        Updated in place.
    report : callable
        Called with `stats` after every block.
    session : ClusterSession
        Started if it is not.
    backbone : Backbone
    network : NetworkPlan
        The layers of the job.
    say : callable
        Called with a sentence about each choice, and each loss.

    Returns
    -------
    dict of int to bytes
        As `featurize.pipeline.pipeline.process_rows` does.

    Raises
    ------
    CallError
        If there is no such cluster, or one of its machines cannot see the images.
    EngineError
        If the network cannot be run there, or too many workers are lost.
    DiskFullError, OutputError
        If rows cannot be written.
    """
    session.start(len(job.rows))
    sink = BackgroundWriter(job, writer, stats)
    dispatch = _Dispatch(job, content_index, stats, report, session, backbone, network, say, sink)
    try:
        refused = dispatch.run(job.rows, content_index.list_prefixes())
        if len(refused):
            dispatch.run(refused, np.zeros(0, PREFIX_DTYPE))
        dispatch.refuse_missing()
        sink.close()
        report(stats)
    except KeyboardInterrupt:
        signals.acknowledge()
        raise
    finally:
        sink.drain()
    return dispatch.changed_rows


class _Dispatch:
    """Sends blocks of a job to workers, and takes what comes back."""

    def __init__(
        self,
        job: ExtractionJob,
        content_index: ContentIndex,
        stats: RunStats,
        report: Callable[[RunStats], None],
        session: ClusterSession,
        backbone: "Backbone",
        network: NetworkPlan,
        say: Say,
        sink: BackgroundWriter,
    ) -> None:
        self.job, self.content_index, self.stats, self.report = job, content_index, stats, report
        self.session, self.backbone, self.network = session, backbone, network
        self.say, self.sink = say, sink
        self.changed_rows: dict[int, bytes] = {}
        self._is_open = np.zeros(len(job.listing.paths), bool)
        self._is_open[job.rows] = True
        self._max_losses = MAX_LOSSES + int(MAX_LOSS_SHARE * len(job.rows))
        self._losses_before = 0
        self._said: set[str] = set()
        self._ledger: Any = None
        self._started = 0.0

    def run(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Compute rows; return those that a worker took for known, and are not."""
        from ray.exceptions import RayError

        try:
            return self._run(rows, known)
        except RayError as error:
            with suppress(RayError):  # the ledger may know more
                self._take_news()
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(
                f"the cluster failed: {type(error).__name__}: {first_line}. What was finished is "
                "kept, and the same command goes on from there"
            ) from error

    def _run(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
        refused: list[int] = []
        self._losses_before, self._started = self.stats.n_lost_workers, time.monotonic()
        tables = self._make_tables(rows)
        arguments = self._share(len(rows), known)
        for table in self._iter_results(tables, arguments):
            self._take_news()
            results = read_result_table(table, self.job.layers, self._is_open)
            refused += self._write(results)
            self.report(self.stats)
        self._take_news()
        self._is_open[refused] = True
        return np.array(sorted(refused), np.intp)

    def refuse_missing(self) -> None:
        """Raise if a row never came."""
        n_missing = int(self._is_open.sum())
        if n_missing:
            raise EngineError(
                f"{format_count(n_missing, 'image')} never came back from the cluster. What was "
                "finished is kept, and the same command goes on from there"
            )

    def _make_tables(self, rows: np.ndarray) -> list["pa.Table"]:
        listing, plan = self.job.listing, self.session.plan
        row_bytes = sum(
            info.dim * np.dtype(info.dtype).itemsize
            for name, info in self.sink.writer.layout.layers.items()
            if name in self.network.dtypes
        )
        on_gpu = plan.device != "cpu"
        block_rows = choose_block_rows(row_bytes, len(rows), plan.n_actors, on_gpu=on_gpu)
        blocks = split_blocks(listing, rows, block_rows)
        return list(make_place_tables(listing, blocks, self.job.recorded_sha256))

    def _share(self, n_rows: int, known: np.ndarray) -> WorkerArguments:
        import ray

        plan = self.session.plan
        worker_job = WorkerJob(
            version=__version__,
            host=socket.gethostname(),
            folder=os.getcwd(),  # noqa: PTH109 - a text, for another machine
            network=self.network,
            source=SourceParts.of(self.job.listing),
            known=known,
            returns_changed=self.job.returns_changed,
            computes_unchanged=self.job.computes_unchanged,
            device=plan.device,
            n_cores=plan.n_cores,
            n_rows=-(-n_rows // plan.n_actors),
        )
        backbone = self.session.share(self.backbone)
        return WorkerArguments(ray.put(worker_job), backbone, self.session.start_ledger())

    def _iter_results(
        self, tables: list["pa.Table"], arguments: WorkerArguments
    ) -> Iterator["pa.Table"]:
        """Yield tables as they come; look at the ledger meanwhile, as none may ever come."""
        import ray
        import ray.data

        self._ledger, plan = arguments.ledger, self.session.plan
        dataset = ray.data.from_arrow(tables).map_batches(
            Featurizer,
            fn_constructor_args=(arguments,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=plan.n_actors),
            num_cpus=plan.n_cores,
            num_gpus=1 if plan.device == "cuda" else 0,
        )
        batches = dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=AHEAD
        )
        fetched = FetchedTables(batches)
        try:
            while True:
                try:
                    table = fetched.get(LOOK_SECONDS)
                except queue.Empty:
                    self._take_news()
                    continue
                if table is None:
                    return
                yield table
        finally:
            fetched.close()

    def _write(self, results: Results) -> list[int]:
        """Pass rows on to be written; return those that are not known after all."""
        others: list[PrefetchedImage] = []
        refused = []
        for item in results.others:
            if item.is_changed:
                self.changed_rows[item.row] = item.digest
                continue
            if item.copy_of == KNOWN:
                item = replace(item, copy_of=self.content_index.claim(item.digest, item.row))
                if item.copy_of is None:
                    refused.append(item.row)
                    continue
            others.append(item)
        if results.computed:
            self.sink.put(results.computed, results.features)
        if others:
            self.sink.put(others, None)
        return refused

    def _take_news(self) -> None:
        """Ask the ledger what has happened; raise if the run cannot go on."""
        import ray

        news: News = ray.get(self._ledger.take_news.remote())
        for measures in news.measures:
            self.stats.add_stages(measures.stage_seconds, measures.wait_seconds)
            if measures.n_images:
                self.stats.record_batch(measures.n_images, measures.stage_seconds["run"])
                self.stats.engine = measures.engine
                self.stats.engine_why = measures.engine_why
            for sentence in measures.sentences:
                if sentence not in self._said:  # every worker says it
                    self._said.add(sentence)
                    self.say(sentence)
        n_losses = self._losses_before + news.n_losses
        if n_losses > self.stats.n_lost_workers:
            self.stats.n_lost_workers = n_losses
            self.say("a worker was lost; its images go to another one")
        waited = time.monotonic() - self._started
        if not news.n_begun and waited > PATIENCE_SECONDS and _IDLE not in self._said:
            self._said.add(_IDLE)
            self.say(_IDLE)
        if news.problem is not None:
            raise _to_error(news.problem)
        if news.n_losses > self._max_losses:
            raise EngineError(
                f"workers were lost {news.n_losses:,} times; Ray's logs on the machines of the "
                "cluster say why. What was finished is kept, and the same command goes on from "
                "there"
            )


def _to_error(problem: Problem) -> HeadgraftError:
    kind: Any = getattr(errors, problem.error, None)
    if isinstance(kind, type) and issubclass(kind, HeadgraftError):
        try:
            return kind(problem.message)
        except TypeError:  # it takes more than a message
            pass
    return EngineError(problem.message)
