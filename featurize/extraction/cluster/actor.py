"""The worker of a cluster: reads, decodes and embeds blocks, with the pieces of a plain run."""

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize.engines.auto import EngineSelector
from featurize.engines.base import Engine
from featurize.errors import CallError, EngineError, FeaturizeError
from featurize.extraction.cluster.blocks import Block, SourceParts, open_block
from featurize.extraction.cluster.ledger import Measures, Problem
from featurize.extraction.cluster.results import (
    KNOWN,
    BlockSink,
    make_empty_table,
    make_result_table,
)
from featurize.images import reasons
from featurize.images.workers.pool import DecoderPool
from featurize.layer_spec import LayerSpec
from featurize.pipeline.content_index import PREFIX_BYTES, PREFIX_DTYPE, ContentIndex, StoredRow
from featurize.pipeline.embedding import NetworkThread, embed_rows
from featurize.pipeline.prefetch import ExtractionJob, PrefetchedImage
from featurize.pipeline.stats import RunStats
from featurize.progress import ignore
from featurize.system import memory
from featurize.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

    from featurize.backbones.backbone import Backbone

# Errors after which every further call of this process fails.
_STICKY_CUDA = re.compile(r"CUDA error(?!: out of memory)|CUBLAS_STATUS|CUDNN_STATUS_EXEC")
_GONE = {reasons.VANISHED, reasons.NOT_A_FILE}


@dataclass(frozen=True)
class NetworkPlan:
    """What a worker computes with.

    Attributes
    ----------
    layers : list of LayerSpec
    dtypes : dict of str to str
        Type in the cache of each layer, by dataset name, in the same order.
    engine, precision : str
        As asked for.
    weights_sha256 : str
        Of the driver's backbone.
    """

    layers: Sequence[LayerSpec]
    dtypes: Mapping[str, str]
    engine: str
    precision: str
    weights_sha256: str


@dataclass(frozen=True)
class WorkerJob:
    """What every worker of a job is told, once.

    Attributes
    ----------
    version : str
        Of the driver's Headgraft.
    host, folder : str
        The driver's machine, and its current folder: paths may be relative.
    network : NetworkPlan
    source : SourceParts
    known : uint64 array of shape (n,)
        Beginnings of the hashes of known contents, sorted.
    returns_changed, computes_unchanged : bool
        As in `featurize.pipeline.prefetch.ExtractionJob`.
    device : {"cpu", "cuda"}
    n_cores : int
        For decoding and arithmetic.
    n_rows : int
        That one worker will have, about.
    """

    version: str
    host: str
    folder: str
    network: NetworkPlan
    source: SourceParts
    known: np.ndarray
    returns_changed: bool
    computes_unchanged: bool
    device: str
    n_cores: int
    n_rows: int


@dataclass(frozen=True)
class WorkerArguments:
    """Arguments of a worker: references alone, as a worker may be started again much later.

    Attributes
    ----------
    job : ray.ObjectRef
        Of a `WorkerJob`.
    backbone : ray.ObjectRef
        Of a `Backbone`.
    ledger : ray.actor.ActorHandle
        Of a `Ledger`.
    """

    job: Any
    backbone: Any
    ledger: Any


class KnownContents(ContentIndex):
    """Index of the contents of one block, which also tells what the driver's index has.

    Parameters
    ----------
    prefixes : uint64 array of shape (n,)
        As `ContentIndex.list_prefixes` gives them.
    """

    def __init__(self, prefixes: np.ndarray) -> None:
        super().__init__()
        self._prefixes = prefixes

    def claim(self, digest: bytes, row: int) -> int | StoredRow | None:
        """Look up a content, or claim it for a row; see `ContentIndex.claim`.

        Parameters
        ----------
        digest : bytes
        row : int

        Returns
        -------
        int, StoredRow or None
            `KNOWN` if the driver has to look for it.
        """
        prefix = np.frombuffer(digest[:PREFIX_BYTES], PREFIX_DTYPE)[0]
        place = int(np.searchsorted(self._prefixes, prefix))
        if place < len(self._prefixes) and self._prefixes[place] == prefix:
            return KNOWN
        return super().claim(digest, row)


class Featurizer:
    """Embeds blocks of places; Ray makes one for each worker.

    Nothing is loaded before the first block, so that whatever goes wrong is known to the ledger.

    Parameters
    ----------
    arguments : WorkerArguments
    """

    def __init__(self, arguments: WorkerArguments) -> None:
        self._arguments = arguments
        self._worker: _Worker | None = None
        self._has_failed = False

    def __call__(self, table: "pa.Table") -> "pa.Table":
        """Embed a block.

        Parameters
        ----------
        table : pa.Table
            As `make_place_tables` makes it.

        Returns
        -------
        pa.Table
            As `make_result_table` makes it; that of `make_empty_table` if the run cannot go on.
        """
        import ray

        ledger = self._arguments.ledger
        job: WorkerJob = ray.get(self._arguments.job)
        number = int(table.column("block")[0].as_py())
        n_tries, fatal = ray.get(ledger.begin.remote(number))
        if not self._has_failed:
            try:
                if self._worker is None:
                    check_machine(job)
                    self._worker = _Worker(job, ray.get(self._arguments.backbone))
                block = open_block(table, job.source)
                if n_tries == 1:
                    result, measures = self._worker.embed(block)
                else:
                    result, measures = self._worker.embed_singly(
                        block, fatal, lambda row: ray.get(ledger.hold.remote(number, row))
                    )
                ray.get(ledger.finish.remote(number, measures))
                return result
            except Exception as error:
                if _STICKY_CUDA.search(str(error)):
                    os._exit(1)  # further calls of this process would fail as well
                self._has_failed = True
                ray.get(ledger.report_problem.remote(_to_problem(error)))
        return make_empty_table(job.network.dtypes)


class _Worker:
    """What stays open from block to block."""

    def __init__(self, job: WorkerJob, backbone: "Backbone") -> None:
        import torch

        if backbone.weights_sha256 != job.network.weights_sha256:
            raise EngineError(
                f"the weights on {socket.gethostname()} are {backbone.weights_sha256[:12]}, those "
                f"of {job.host} {job.network.weights_sha256[:12]}: install the same release of "
                "torch and Headgraft on both"
            )
        torch.set_num_threads(job.n_cores)
        memory.retain_freed_memory()  # `Backbone` sees to it where it is made, not where it is sent
        self._job, self._backbone = job, backbone
        self._sentences: list[str] = []
        plan = job.network
        selector = EngineSelector(
            plan.engine, plan.precision, self._open_engine, self._sentences.append
        )
        self._network = NetworkThread(selector)
        self._selector = selector
        self._decoders = DecoderPool(backbone.preprocess)
        self._decoders.use_processes()  # so that most images that end a process end only that one
        self._n_done = 0

    def _open_engine(self, name: str) -> Engine:
        from featurize.engines.factory import open_engine

        plan = self._job.network
        return open_engine(
            self._backbone,
            plan.layers,
            name=name,
            device=self._job.device,
            precision=plan.precision,
        )

    def embed(self, block: Block) -> tuple["pa.Table", Measures]:
        """Embed all images of a block."""
        sink = BlockSink(self._job.network.dtypes)
        index = KnownContents(self._job.known)
        stats = RunStats(workers=self._job.n_cores)
        self._embed_rows(block, np.arange(len(block.rows)), index, sink, stats)
        return self._finish(block, sink, stats)

    def embed_singly(
        self, block: Block, fatal: Sequence[int], hold: Callable[[int], None]
    ) -> tuple["pa.Table", Measures]:
        """Embed the images of a block one by one, but for those that took their worker down."""
        sink = BlockSink(self._job.network.dtypes)
        index = KnownContents(self._job.known)
        stats = RunStats(workers=self._job.n_cores)
        for place, row in enumerate(block.rows.tolist()):
            if row in fatal:
                listed = int(block.listing.sizes[place]), int(block.listing.stamps[place])
                sink.others.append(PrefetchedImage(place, *listed, reason=reasons.TOOK_WORKER))
                continue
            hold(row)
            self._embed_rows(block, np.array([place]), index, sink, stats)
        return self._finish(block, sink, stats)

    def _embed_rows(
        self,
        block: Block,
        places: np.ndarray,
        index: ContentIndex,
        sink: BlockSink,
        stats: RunStats,
    ) -> None:
        job = ExtractionJob(
            block.listing,
            places,
            self._backbone.preprocess,
            list(self._job.network.dtypes),
            self._selector,
            None,
            block.recorded_sha256,
            self._job.returns_changed,
            self._job.computes_unchanged,
        )
        self._n_done += len(places)
        self._network.n_later = max(self._job.n_rows - self._n_done, 0)
        changed = embed_rows(job, index, stats, sink, ignore, self._network, self._decoders)
        sizes, stamps = block.listing.sizes, block.listing.stamps
        sink.others += [
            PrefetchedImage(place, int(sizes[place]), int(stamps[place]), digest, is_changed=True)
            for place, digest in changed.items()
        ]

    def _finish(
        self, block: Block, sink: BlockSink, stats: RunStats
    ) -> tuple["pa.Table", Measures]:
        self._refuse_other_files(sink, len(block.rows))
        measures = Measures(
            stats.images_run,
            stats.stage_seconds,
            stats.wait_seconds,
            stats.engine,
            stats.engine_why,
            tuple(self._sentences),
        )
        self._sentences.clear()
        return make_result_table(sink, block.rows, self._job.network.dtypes), measures

    def _refuse_other_files(self, sink: BlockSink, n_rows: int) -> None:
        """Tell images that are gone from a folder of the same name that has other files."""
        source, here = self._job.source.source, socket.gethostname()
        if source.is_remote or here == self._job.host or n_rows < 2:
            return
        if len(sink.others) == n_rows and all(item.reason in _GONE for item in sink.others):
            raise _make_unshared_error(self._job, "has none of the images of a block")


def check_machine(job: WorkerJob) -> None:
    """Check that this machine has the same Headgraft, and the source.

    Parameters
    ----------
    job : WorkerJob

    Raises
    ------
    CallError
        If not.
    """
    here = socket.gethostname()
    if __version__ != job.version:
        raise CallError(
            f"{here} has Headgraft {__version__}, {job.host} has {job.version}: install the same "
            "release on all machines of the cluster"
        )
    with suppress(OSError):
        os.chdir(job.folder)
    source = job.source.source
    if not source.is_remote and not Path(source.root).exists():
        raise _make_unshared_error(job, "does not exist there")


def _make_unshared_error(job: WorkerJob, problem: str) -> CallError:
    return CallError(
        f"{socket.gethostname()} of the cluster cannot see the images: {job.source.source.root} "
        f"{problem}. Put them on storage that all machines share under one path, or behind a URL"
    )


def _to_problem(error: Exception) -> Problem:
    here = socket.gethostname()
    if isinstance(error, FeaturizeError):
        return Problem(type(error).__name__, str(error))
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Problem(
        "EngineError", f"a worker on {here} failed: {type(error).__name__}: {first_line}"
    )
