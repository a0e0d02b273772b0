"""Summary of a finished run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.label_table import label_table_path
from featurize.pipeline.stats import RunStats
from featurize.sources.folder import FOLDER


@dataclass
class Summary:
    """Summary of a run; ``rows = computed + reused + failed`` unless it was interrupted.

    Attributes
    ----------
    cache : str
        Path of the cache.
    rows : int
        Rows in the cache.
    computed : int
        Images that went through the network.
    reused : int
        Rows that were finished before or by another process, or copied from a row of the same
        content.
    failed : int
        Failed rows.
    seconds : float
        Wall-clock time of the call.
    images_per_second : float
        Images through the network per second, without start-up.
    bound : str
        The bottleneck: ``read`` (or ``network``), ``decode``, ``run`` or ``write``; ``none`` if
        nothing was computed.
    engine : str
        The engine that ran last; empty if none ran.
    engine_why : str
        Why it was chosen.
    layers : list of str
        Dataset names.
    failures : dict of str to str
        Reason of each failed row, by path.
    verdict : str
        A sentence about the bottleneck.
    source : str
        What kind of source the images are in.
    labels : str
        Path of the table of labels that came with them; empty if there is none.
    parts : dict of str to int, optional
        Of a cache of parts, else None: ``total``, ``completed`` (by whomever), ``by_this_process``
        (those that it changed) and ``busy`` (in the hands of others).
    """

    cache: str
    rows: int = 0
    computed: int = 0
    reused: int = 0
    failed: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    bound: str = "none"
    engine: str = ""
    engine_why: str = ""
    layers: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    verdict: str = "Nothing to compute."
    source: str = FOLDER
    labels: str = ""
    parts: dict[str, int] | None = None

    @classmethod
    def of(cls, path: Path, measure: RunStats, seconds: float) -> "Summary":
        """Summarise a cache after a run.

        Parameters
        ----------
        path : Path
            The cache; it need not exist.
        measure : RunStats
            Of the run.
        seconds : float
            Wall-clock time of the run.

        Returns
        -------
        Summary
            What is in the cache now.
        """
        if not path.exists():
            return cls(str(path), seconds=seconds)
        cache, labels = FeatureCache(path), label_table_path(path)
        counts = cache.counts
        summary = cls(
            cache=str(path),
            rows=cache.n_rows,
            computed=measure.computed,
            reused=max(counts["ok"] - measure.computed, 0),
            failed=counts["failed"],
            seconds=seconds,
            layers=list(cache.layers),
            failures=cache.failures,
            source=str(cache.source.get("kind", FOLDER)),
            labels=str(labels) if labels.exists() else "",
        )
        summary.describe_work(measure)
        return summary

    def describe_work(self, measure: RunStats) -> None:
        """Take over speed, engine and verdict.

        Parameters
        ----------
        measure : RunStats
            Of the run.
        """
        if measure.images_run:
            self.images_per_second = measure.images_per_second
            self.bound = measure.bottleneck
            self.engine, self.engine_why = measure.engine, measure.engine_why
            self.verdict = measure.describe_bottleneck()
        elif measure.total:
            images = f"{measure.total:,} image{'s were' if measure.total > 1 else ' was'}"
            self.verdict = f"{images} looked at; none went through the network."
        if measure.n_lost_workers:
            self.verdict += f" Workers were lost {measure.n_lost_workers:,} times on the way."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON.

        Returns
        -------
        dict of str to object
            The attributes by name.
        """
        return asdict(self)
