"""`run`: make a feature cache, or complete one."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featurize.errors import CallError
from featurize.extraction.cluster.session import open_session
from featurize.extraction.completion.changes import RetryPolicy
from featurize.extraction.dry_run import Estimate
from featurize.extraction.options import Options
from featurize.extraction.parts.parts_folder import find_parts_folder
from featurize.extraction.parts.run_parts import run_parts
from featurize.extraction.request import RunRequest
from featurize.extraction.single_cache import run_single_cache
from featurize.extraction.summary import Summary
from featurize.pipeline.stats import RunStats
from featurize.progress import ignore
from featurize.sources.opening import ImagesArgument
from featurize.sources.source import SourceOptions

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone


def run(
    images: ImagesArgument,
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
    size: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    dry_run: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    prune: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    follow: bool = False,
    column: str | None = None,
    split: str | None = None,
    component: str | None = None,
    root: str | None = None,
    scratch: str | None = None,
    part_rows: int | None = None,
    cluster: str | None = None,
    actors: int | None = None,
    report: Callable[[RunStats], None] = ignore,
    say: Callable[[str], None] = ignore,
) -> Summary | Estimate:
    """Embed every image of a source into a feature cache.

    An existing cache is completed: finished rows are not computed again, and options not given are
    taken from it.

    Parameters
    ----------
    images : path or URL, or sequence of them
        A folder of images of any depth; tar shards, zip archives, Parquet or Arrow tables, or a
        folder of them; a list of images (``.csv``, ``.jsonl``, ``.parquet``); or any of these
        behind a URL. Labels that come with the images are written to ``OUTPUT.labels.csv``.
    output : path
        The cache, an HDF5 file. A folder, written ``photos.parts/``, is a cache of parts: any
        number of processes may complete it at the same time.
    backbone : str or Backbone, optional
        As for `featurize.load_backbone`, or a `Backbone` made in Python. Default ``resnet50``.
    weights : str, optional
        As for `featurize.load_backbone`.
    layers : str, optional
        ``last`` (the default), ``auto`` (every stage), or names with pools: ``layer3,layer4:max``.
    pool : {"avg", "max", "avgmax", "none", "token"}, optional
        For layers without a pool of their own. Default ``avg`` for maps.
    dtype : {"float32", "float16"}, optional
        Of the stored features. Default ``float32``.
    precision : {"float32", "tf32", "bf16", "fp16"}, optional
        Of the arithmetic. Default ``float32``.
    decode : {"exact", "quick", "fast", "fastest"}, optional
        ``quick`` decodes by other libraries (the extra ``headgraft[quick]``), ``fast`` decodes
        large JPEGs at reduced size, ``fastest`` does both; pixels differ slightly. Default
        ``exact``.
    preprocess : str, optional
        Name of weights whose preprocessing to use, or a JSON file. Default that of `weights`.
    size : int, optional
        Height and width in pixels at which the network sees images. Default that of `preprocess`.
    engine : {"auto", "eager", "compile", "onnxruntime", "cuda"}, optional
        Runs the network. ``auto`` changes to a faster engine if that saves more time than its
        start-up takes. In float32 the features of all engines agree to 1e-5 of a row's norm.
    device : str, optional
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    dry_run : bool
        Estimate the run; write nothing.
    retry_failed : bool
        Try every failed image again. Failures for a reason of the system's are always retried.
    rehash : bool
        Read every file and compare its hash, instead of comparing size and time.
    prune : bool
        Allow more than a tenth of the rows to be removed because their images are gone.
    include, exclude : list of str, optional
        Globs over the images' paths that select images
        (`featurize.sources.patterns.GlobFilter`). Default as in the cache; ``["**"]`` and ``[]``
        select all images.
    follow : bool
        Follow links that lead out of the folder.
    column : str, optional
        Of a table or a list: the column of the images, paths or URLs.
    split : str, optional
        Of tables, lists and shards: take only this split, as ``train``.
    component : str, optional
        Of WebDataset samples with several images: which one, as ``left.jpg``.
    root : str, optional
        Of a list: the folder or URL where its paths begin. Default the list's own folder.
    scratch : str, optional
        Of remote archives: a folder for copies, so that none is fetched twice.
    part_rows : int, optional
        Of a cache of parts: about how many rows a part has, 1,000,000 by default. Those that exist
        stay as they are.
    cluster : str, optional
        Compute on a Ray cluster: ``local`` starts one on this machine, ``auto`` joins the one that
        is running, ``HOST:PORT`` joins that one. This process alone writes the cache.
    actors : int, optional
        Of a cluster: how many networks run at the same time. Default one for each GPU, or
        each machine.
    report : callable
        Called often with the run's `RunStats`.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    Summary or Estimate
        `Estimate` for a dry run.

    Raises
    ------
    CallError, BackboneError, UnknownLayerError
        If the images, an option or the output is invalid.
    CacheFormatError, FingerprintMismatchError
        If `output` exists and is not a cache, or has another extractor.
    EngineError
        If the requested engine cannot run the network.
    CacheBusyError, DiskFullError, OutputError
        If another process writes to the cache, or it cannot be written. Parts that another
        process writes to are left to it.
    RunInterruptedError
        On Ctrl-C; finished rows are written and marked.
    """
    custom_backbone = None if isinstance(backbone, str) else backbone
    if custom_backbone is not None and decode not in (None, custom_backbone.preprocess.decode):
        raise CallError(
            "a Backbone has its own preprocessing, with "
            f"decode={custom_backbone.preprocess.decode!r}: make it with decode={decode!r}, or "
            "leave the option out"
        )
    request = RunRequest(
        images=images,
        source_options=SourceOptions(
            follow=follow,
            column=column,
            split=split,
            component=component,
            root=root,
            scratch=scratch,
        ),
        include=include,
        exclude=exclude,
        options=Options(
            backbone=backbone if isinstance(backbone, str) else None,
            weights=weights,
            layers=layers,
            pool=pool,
            dtype=dtype,
            precision=precision,
            decode=decode,
            preprocess=preprocess,
            size=size,
            engine=engine,
            device=device,
        ),
        custom_backbone=custom_backbone,
        retry=RetryPolicy(retry_failed, rehash),
        prune=prune,
        dry_run=dry_run,
        part_rows=part_rows,
        cluster=cluster,
        n_actors=actors,
        report=report,
        say=say,
    )
    folder = find_parts_folder(output, part_rows)
    with open_session(cluster, actors, engine, device, say) as session:
        request = replace(request, session=session)
        if folder is not None:
            return run_parts(folder, request)
        return run_single_cache(Path(output), request)
