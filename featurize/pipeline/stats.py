"""Where a run's time goes: its stages, its rate, what bounds it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("read", "decode", "run", "write")
_BOTTLENECK_MESSAGES = {
    "read": "Reading files bounded this run; faster storage would help",
    "decode": "Decoding images bounded this run; more cores would help",
    "run": "The network bounded this run; a GPU or an earlier cut would help",
    "write": "Writing the cache bounded this run; a faster disk or --dtype float16 would help",
}


@dataclass
class RunStats:
    """Seconds spent in each stage, added up over threads, and images through the network.

    `done` counts rows brought into the cache, `computed` those of them with new features.
    `waited` is the main thread's time: for decoded images, in the network, and for the writer.
    `engine` is the one that ran last, `engine_why` the reason it was chosen for,
    `hint` a sentence more for the verdict.
    """

    workers: int
    total: int = 0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wait_seconds: dict[str, float] = field(default_factory=lambda: {"input": 0.0, "output": 0.0})
    done: int = 0
    images_run: int = 0
    computed: int = 0
    engine: str = ""
    engine_why: str = ""
    hint: str = ""
    started: float = field(default_factory=time.perf_counter)
    _rate_start: tuple[float, int] | None = None
    _last_batch_time: float = 0.0

    def record_batch(self, count: int, seconds: float) -> None:
        """Note a batch that went through the network."""
        self.stage_seconds["run"] += seconds
        self.images_run += count
        self._last_batch_time = time.perf_counter()
        if self._rate_start is None:
            # The first batch pays for start-up; the rate counts from its end.
            self._rate_start = (self._last_batch_time, self.images_run)

    def restart_rate(self) -> None:
        """Count the rate from here on: another engine has started, which is no part of it."""
        self._rate_start = (time.perf_counter(), self.images_run)

    @contextmanager
    def time_waiting(self, what: str) -> Iterator[None]:
        """Count the time inside as waiting for ``input`` or ``output``."""
        start = time.perf_counter()
        yield
        self.wait_seconds[what] += time.perf_counter() - start

    @property
    def stage(self) -> str:
        """What is going on, as a `featurize.progress.Progress`."""
        return "embedding"

    @property
    def note(self) -> str:
        """Rate and the stages' shares of the working time: ``310 images/s, read 3%, ...``."""
        shares = (f"{stage} {share:.0%}" for stage, share in self.stage_shares.items())
        return ", ".join((f"{self.images_per_second:,.0f} images/s", *shares))

    @property
    def images_per_second(self) -> float:
        """Images through the network a second, without start-up."""
        if self._rate_start is None:
            return 0.0
        since, before = self._rate_start
        if self.images_run > before:
            return (self.images_run - before) / (self._last_batch_time - since)
        return self.images_run / (self._last_batch_time - self.started)

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end; None while nothing is known."""
        elapsed = time.perf_counter() - self.started
        return (self.total - self.done) * elapsed / self.done if self.done else None

    @property
    def stage_shares(self) -> dict[str, float]:
        """Share of the working time of each stage, 0 to 1; threads count each for itself."""
        whole = sum(self.stage_seconds.values()) or 1.0
        return {stage: seconds / whole for stage, seconds in self.stage_seconds.items()}

    @property
    def bottleneck(self) -> str:
        """The stage the others waited for."""
        if not self.images_run:
            return "read"
        waits = {
            "run": self.stage_seconds["run"],
            "write": self.wait_seconds["output"],
            "input": self.wait_seconds["input"],
        }
        longest = max(waits, key=lambda name: waits[name])
        if longest == "input":
            return (
                "decode" if self.stage_seconds["decode"] >= self.stage_seconds["read"] else "read"
            )
        return longest

    def describe_bottleneck(self) -> str:
        """A sentence that says what bounded the run, with the figures."""
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in self.stage_shares.items())
        return f"{_BOTTLENECK_MESSAGES[self.bottleneck]} ({shares} of the working time).{self.hint}"
