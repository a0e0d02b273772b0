"""What a run did, in figures and in words."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featurize.cache.reader import FeatureCache
from featurize.pipeline.stats import RunStats


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
    engine : str
        What ran the network, at last; empty where nothing ran.
    engine_why : str
        Why that one.
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
    engine: str = ""
    engine_why: str = ""
    layers: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    verdict: str = "Nothing to compute."

    @classmethod
    def of(cls, path: Path, measure: RunStats, seconds: float) -> "Summary":
        """Count what stands in a cache after a run."""
        if not path.exists():
            return cls(str(path), seconds=seconds)
        cache = FeatureCache(path)
        count = cache.counts
        found = cls(
            cache=str(path),
            rows=cache.n_rows,
            computed=measure.computed,
            reused=max(count["ok"] - measure.computed, 0),
            failed=count["failed"],
            seconds=seconds,
            layers=list(cache.layers),
            failures=cache.failures,
        )
        if measure.images_run:
            found.images_per_second = measure.images_per_second
            found.bound = measure.bottleneck
            found.engine, found.engine_why = measure.engine, measure.engine_why
            found.verdict = measure.describe_bottleneck()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
