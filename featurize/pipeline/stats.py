"""Timing of a run: its stages, its rate and its bottleneck."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("read", "decode", "run", "write")
_BOTTLENECK_MESSAGES = {
    "read": "Reading files bounded this run; faster storage would help",
    "network": "Fetching images bounded this run; a machine nearer to them would help",
    "decode": "Decoding images bounded this run; more cores would help",
    "run": "The network bounded this run; an earlier cut or a faster device would help",
    "write": "Writing the cache bounded this run; a faster disk or --dtype float16 would help",
}


@dataclass
class RunStats:
    """Times and counts of a run.

    Attributes
    ----------
    workers : int
        Number of decoding threads.
    total : int
        Rows to process.
    stage_seconds : dict of str to float
        Time in each of `STAGES`, summed over threads.
    wait_seconds : dict of str to float
        Time that the main thread waited for decoded images (``input``) and for the writer
        (``output``), and that the decoding threads waited for images to decode (``read``).
    is_remote : bool
        Whether images come over a network.
    done : int
        Rows written to the cache.
    images_run : int
        Images through the network.
    computed : int
        Rows written with new features.
    engine, engine_why : str
        The engine that ran last, and why it was chosen.
    hint : str, optional
        A sentence appended to the description of the bottleneck; None until it was looked for.
    n_lost_workers : int
        Processes of a cluster that ended before their images were done.
    started : float
        `time.perf_counter` at the start.
    """

    workers: int
    total: int = 0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wait_seconds: dict[str, float] = field(
        default_factory=lambda: {"input": 0.0, "output": 0.0, "read": 0.0}
    )
    is_remote: bool = False
    done: int = 0
    images_run: int = 0
    computed: int = 0
    engine: str = ""
    engine_why: str = ""
    hint: str | None = None
    n_lost_workers: int = 0
    started: float = field(default_factory=time.perf_counter)
    _rate_start: tuple[float, int] | None = None
    _last_batch_time: float = 0.0

    def record_batch(self, count: int, seconds: float) -> None:
        """Count a batch that went through the network.

        Parameters
        ----------
        count : int
            Images in it.
        seconds : float
            Time in the network.
        """
        self.stage_seconds["run"] += seconds
        self.images_run += count
        self._last_batch_time = time.perf_counter()
        if self._rate_start is None:
            # The first batch includes start-up, so the rate counts from its end.
            self._rate_start = (self._last_batch_time, self.images_run)

    def add_stages(
        self, stage_seconds: Mapping[str, float], wait_seconds: Mapping[str, float]
    ) -> None:
        """Add the times of rows that another process computed, but for the network's.

        Parameters
        ----------
        stage_seconds, wait_seconds : mapping of str to float
            As the attributes.
        """
        for own, others in (
            (self.stage_seconds, stage_seconds),
            (self.wait_seconds, wait_seconds),
        ):
            for name, seconds in others.items():
                own[name] += seconds if name != "run" else 0.0

    def restart_rate(self) -> None:
        """Count the rate from now on, after the start-up of another engine."""
        self._rate_start = (time.perf_counter(), self.images_run)

    @contextmanager
    def time_waiting(self, what: str) -> Iterator[None]:
        """Count the time within a block as waiting.

        Parameters
        ----------
        what : {"input", "output"}

        Yields
        ------
        None
        """
        start = time.perf_counter()
        yield
        self.wait_seconds[what] += time.perf_counter() - start

    @property
    def stage(self) -> str:
        """Name of the stage; see `featurize.progress.Progress`."""
        return "embedding"

    @property
    def note(self) -> str:
        """Rate and shares of the working time, as ``310 images/s, read 3%, ...``."""
        shares = (f"{stage} {share:.0%}" for stage, share in self.stage_shares.items())
        return ", ".join((f"{self.images_per_second:,.0f} images/s", *shares))

    @property
    def images_per_second(self) -> float:
        """Images through the network per second, without start-up."""
        if self._rate_start is None:
            return 0.0
        start_time, images_before = self._rate_start
        if self.images_run > images_before:
            return (self.images_run - images_before) / (self._last_batch_time - start_time)
        return self.images_run / (self._last_batch_time - self.started)

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end; None before the first row is done."""
        elapsed = time.perf_counter() - self.started
        return (self.total - self.done) * elapsed / self.done if self.done else None

    @property
    def stage_shares(self) -> dict[str, float]:
        """Share of each stage in the working time of all threads, 0 to 1."""
        total_seconds = sum(self.stage_seconds.values()) or 1.0
        return {stage: seconds / total_seconds for stage, seconds in self.stage_seconds.items()}

    @property
    def bottleneck(self) -> str:
        """The stage that the others waited for."""
        reading = "network" if self.is_remote else "read"
        if not self.images_run:
            return reading
        waits = {
            "run": self.stage_seconds["run"],
            "write": self.wait_seconds["output"],
            "input": self.wait_seconds["input"],
        }
        longest = max(waits, key=lambda name: waits[name])
        if longest == "input":
            is_decoding = self.stage_seconds["decode"] >= self.wait_seconds["read"]
            return "decode" if is_decoding else reading
        return longest

    def describe_bottleneck(self) -> str:
        """Describe the bottleneck in a sentence, with the shares of all stages.

        Returns
        -------
        str
        """
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in self.stage_shares.items())
        message = _BOTTLENECK_MESSAGES[self.bottleneck]
        return f"{message} ({shares} of the working time).{self.hint or ''}"
