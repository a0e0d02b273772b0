"""What a run was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featurize.extraction.cluster.session import ClusterSession
from featurize.extraction.completion.changes import RetryPolicy
from featurize.extraction.options import Options
from featurize.pipeline.stats import RunStats
from featurize.progress import Say, ignore
from featurize.sources.opening import ImagesArgument
from featurize.sources.source import SourceOptions

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone


@dataclass(frozen=True)
class RunRequest:
    """The arguments of `featurize.extraction.run.run`, but for the output.

    Attributes
    ----------
    images : path or URL, or sequence of them
    source_options : SourceOptions
        Without globs.
    include, exclude : sequence of str, optional
        Globs; None for those of the cache.
    options : Options
    custom_backbone : Backbone, optional
        A backbone made in Python, instead of a named one.
    retry : RetryPolicy
    prune, dry_run : bool
    part_rows : int, optional
    cluster : str, optional
    n_actors : int, optional
    session : ClusterSession, optional
        The cluster that `cluster` names.
    report, say : callable
    """

    images: ImagesArgument
    source_options: SourceOptions
    include: Sequence[str] | None
    exclude: Sequence[str] | None
    options: Options
    custom_backbone: "Backbone | None" = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    prune: bool = False
    dry_run: bool = False
    part_rows: int | None = None
    cluster: str | None = None
    n_actors: int | None = None
    session: ClusterSession | None = None
    report: Callable[[RunStats], None] = ignore
    say: Say = ignore
