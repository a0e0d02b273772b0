"""`run`: the one public way to make a feature cache, or to complete one."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize import __version__, growth, images, writer
from featurize.cache import FeatureCache
from featurize.contents import Contents
from featurize.errors import CacheFormatError, CallError, Interrupted
from featurize.estimate import Estimate, estimate
from featurize.images import Listing
from featurize.layout import LayerInfo
from featurize.loader import Loader
from featurize.measure import Measure
from featurize.pipeline import Done, Task, pump
from featurize.plan import Options, check_vanished, compare, same_extractor, settle, to_do
from featurize.writer import CacheWriter, Lock

if TYPE_CHECKING:
    from featurize.backbones import Backbone


_MAKER = f"headgraft {__version__}"


@dataclass
class Summary:
    """What a run did. ``rows = computed + reused + failed`` where it was not interrupted.

    Attributes
    ----------
    cache : str
    rows : int
    computed : int
        Images that went through the network.
    reused : int
        Rows taken as they were, or over from the same content elsewhere.
    failed : int
    seconds : float
        All of it, from the call to the return.
    images_per_second : float
        Of the steady state, without start-up.
    bound : str
        The stage that bounded the run: read, decode, run or write; ``none`` where nothing was
        computed.
    layers : list of str
        Dataset names.
    failures : dict of str to str
        Why, by path.
    verdict : str
        What bounded the run, in words.
    """

    cache: str
    rows: int = 0
    computed: int = 0
    reused: int = 0
    failed: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    bound: str = "none"
    layers: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    verdict: str = "Nothing to compute."

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def run(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    backbone: "str | Backbone | None" = None,
    weights: str | None = None,
    layers: str | None = None,
    pool: str | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    decode: str | None = None,
    preprocess: str | None = None,
    engine: str = "auto",
    device: str = "auto",
    dry_run: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    prune: bool = False,
    report: Callable[[Measure], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Summary | Estimate:
    """Embed every image of a folder, once, into a feature cache.

    A cache that is there already is completed: rows that are done are left alone, and options
    not given are taken from it.

    Parameters
    ----------
    folder : path
        The images, in any depth of folders.
    output : path
        The cache, an HDF5 file.
    backbone : str or Backbone, optional
        A torchvision network or ``seedling`` by name, a weights file that names its network, or a
        `Backbone` of your own. Default ``resnet50``.
    weights : str, optional
        torchvision's name for them, or a local ``.safetensors`` or ``.pth`` file.
    layers : str, optional
        ``last`` (the default), ``auto`` (every stage), or names with pools: ``layer3,layer4:max``.
    pool : {"avg", "max", "avgmax", "none", "token"}, optional
        For layers that name none.
    dtype : {"float32", "float16"}, optional
        As stored.
    precision : {"float32", "tf32", "bf16", "fp16"}, optional
        As computed.
    decode : {"exact", "fast"}, optional
        ``fast`` lets large JPEGs be decoded at reduced size; pixels differ slightly.
    preprocess : str, optional
        A weights name whose preprocessing to take, or a JSON file.
    engine, device : str
    dry_run : bool
        Say what would be done and what it would cost; write nothing.
    retry_failed : bool
        Try every failed image again; those that failed by the system's fault are in any case.
    rehash : bool
        Read every file and compare its hash, instead of trusting size and time.
    prune : bool
        Allow more than a tenth of the rows to go, because their images are gone.
    report : callable
        Called often with the run's `Measure`.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    Summary, or Estimate for a dry run

    Raises
    ------
    CallError, BackboneError, UnknownLayer
        If the call is wrong: folder, options, output.
    CacheFormatError, FingerprintMismatch
        If `output` exists and is no cache, or one of another extractor.
    CacheBusy, DiskFull
    Interrupted
        On Ctrl-C; what is done is kept and marked.
    """
    started = time.perf_counter()
    path = Path(output)
    _check_output(path)
    own = None if backbone is None or isinstance(backbone, str) else backbone
    options = Options(
        backbone=None if own else backbone,  # type: ignore[arg-type]
        weights=weights,
        layers=layers,
        pool=pool,
        dtype=dtype,
        precision=precision,
        decode=decode,
        preprocess=preprocess,
        engine=engine,
        device=device,
    )
    options.check()
    listing = images.find(folder)
    for name in listing.passed_over:
        say(f"passed over {name}: its name is not UTF-8")
    with nullcontext() if dry_run else Lock(path):
        job = _Job(path, listing, options, own, prune, retry_failed, rehash, report, say)
        if dry_run:
            return job.estimate()
        try:
            summary = job.run()
        except KeyboardInterrupt:
            summary = job.summary(Done())
            summary.seconds = time.perf_counter() - started
            raise Interrupted(_stopped(path), summary.as_dict()) from None
    summary.seconds = time.perf_counter() - started
    return summary


def _stopped(path: Path) -> str:
    for place in (growth.part_of(path), path):
        if place.exists():
            count = FeatureCache(place).counts
            finished = count["ok"] + count["failed"]
            return (
                f"stopped; {finished:,} of {sum(count.values()):,} rows are done and kept in "
                f"{place}. The same command goes on from there"
            )
    return "stopped before anything was written"


def _check_output(path: Path) -> None:
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise CallError(f"{path} is a folder; give the cache a file name: -o {path / 'cache.h5'}")


def _opened(path: Path) -> FeatureCache | None:
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except CacheFormatError as error:
        raise CacheFormatError(f"{error}. It is left as it is; give another -o") from error


class _Job:
    def __init__(
        self,
        path: Path,
        listing: Listing,
        options: Options,
        own: "Backbone | None",
        prune: bool,
        retry_failed: bool,
        rehash: bool,
        report: Callable[[Measure], None],
        say: Callable[[str], None],
    ) -> None:
        self.path, self.listing, self.options = path, listing, options
        self.retry_failed, self.rehash, self.report, self.say = retry_failed, rehash, report, say
        self.cache = _opened(path)
        self.wanted = settle(options, self.cache, own.name if own else None)
        self.loader = Loader(self.wanted, own, self.cache, say)
        self.measure = Measure(total=0, workers=_workers())
        self.found = compare(listing, self.cache) if self.cache else None
        if self.cache and self.found:
            if own or not same_extractor(self.wanted, options, self.cache):
                _ = self.loader.backbone  # refuses another extractor, before anything is touched
            if not prune:
                check_vanished(listing, self.cache, self.found)

    def run(self) -> Summary:
        if self.cache is None:
            self._allocate()
            self.cache = FeatureCache(self.path)
            self.found = compare(self.listing, self.cache)
        there = {(info.layer, info.pool) for info in self.cache.layers.values()}
        assert self.found is not None
        if self.found.same_paths and set(self.wanted.layers) == there:
            if growth.part_of(self.path).exists():
                self.say(
                    f"{growth.part_of(self.path)} is left from a run that added something "
                    "else; run that again to finish it, or remove it"
                )
            done = self._complete()
        else:
            done = self._grow(new_layers=set(self.wanted.layers) != there)
        return self.summary(done)

    def estimate(self) -> Estimate:
        rows = len(self.listing.paths)
        if self.cache is not None and self.found is not None:
            todo = to_do(
                self.cache,
                np.ones(self.cache.n_rows, bool),
                retry_failed=self.retry_failed,
                rehash=False,
            )
            finished = np.ones(self.cache.n_rows, bool)
            finished[todo.rows] = False
            known = self.found.unchanged & finished[self.found.old_row]
            if len(self.wanted.layers) == len(self.cache.layers):
                rows -= int(known.sum())
        return estimate(self.path, self.listing, self.wanted, self.loader, rows)

    def _allocate(self) -> None:
        infos = self.loader.infos(self.wanted.layers)
        needed = writer.bytes_needed(infos, len(self.listing.paths))
        self.say(f"{self.path} takes {needed / 1e6:,.1f} MB for {len(self.listing.paths):,} images")
        writer.allocate(
            self.path,
            self.loader.extractor,
            infos,
            self.listing.paths,
            self.listing.sizes,
            self.listing.mtimes_ns,
            root=str(self.listing.root.resolve()),
            created_by=_MAKER,
        )

    def _complete(self) -> Done:
        """Finish the rows of the cache in place."""
        assert self.cache is not None
        assert self.found is not None
        todo = to_do(
            self.cache,
            self.found.unchanged,
            retry_failed=self.retry_failed,
            rehash=self.rehash,
        )
        if not len(todo.rows):
            return Done()
        layers = list(self.cache.layers.values())
        with CacheWriter(self.path) as into:
            contents = growth.contents_of(into, [], todo.rows)
            return self._pump(todo.rows, layers, into, contents, recorded=todo.recorded)

    def _grow(self, new_layers: bool) -> Done:
        """Make the grown cache beside the old one, then put it in its place."""
        cache, found = self.cache, self.found
        assert cache is not None
        assert found is not None
        layers = (
            self.loader.infos(self.wanted.layers) if new_layers else list(cache.layers.values())
        )
        older = growth.open_part(
            cache,
            layers,
            self.listing,
            created_by=_MAKER,
            say=self.say,
        )
        again = growth.retried(cache, retry_failed=self.retry_failed, rehash=self.rehash)
        with CacheWriter(growth.part_of(self.path)) as into:
            known = growth.take_over(cache, into, found, self.listing, again)
            pending = into.status == 0
            contents = growth.contents_of(into, older, np.flatnonzero(pending))
            done = Done()
            if len(known.rows):
                recorded = np.zeros((len(pending), 32), np.uint8)
                recorded[known.rows] = cache.column("sha256")[known.old_rows]
                missing = [info for info in layers if info.name not in cache.layers]
                done = self._pump(
                    known.rows, missing, into, contents, recorded=recorded, new_layers_only=True
                )
                pending[known.rows] = False
                pending[done.changed] = True
            rest = np.flatnonzero(pending)
            if len(rest):
                done.computed += self._pump(rest, layers, into, contents).computed
        growth.finish(cache)
        return done

    def _pump(
        self,
        rows: np.ndarray,
        layers: list[LayerInfo],
        into: CacheWriter,
        contents: Contents,
        *,
        recorded: np.ndarray | None = None,
        new_layers_only: bool = False,
    ) -> Done:
        assert self.cache is not None
        self.measure.total += len(rows)
        task = Task(
            self.listing,
            rows,
            dict(self.cache.extractor.preprocess),
            [info.name for info in layers],
            lambda: self.loader.engine(layers),
            recorded,
            new_layers_only,
        )
        return pump(task, into, contents, self.measure, self.report)

    def summary(self, done: Done) -> Summary:
        """What stands in the cache now."""
        if not self.path.exists():
            return Summary(str(self.path))
        cache = FeatureCache(self.path)
        count = cache.counts
        ran = self.measure.images_run > 0
        return Summary(
            cache=str(self.path),
            rows=cache.n_rows,
            computed=done.computed,
            reused=count["ok"] - done.computed,
            failed=count["failed"],
            images_per_second=self.measure.images_per_second,
            bound=self.measure.bound if ran else "none",
            layers=list(cache.layers),
            failures=cache.failures,
            verdict=self.measure.verdict() if ran else "Nothing to compute.",
        )


def _workers() -> int:
    """Decoding threads: one a core this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
