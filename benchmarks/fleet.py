"""A fleet that works through images, with its failures: a discrete-event simulation.

Two ways: parts that workers claim, each with a file of its own, and one driver that deals out
blocks and writes. Times are in seconds. Nodes fail while they are up, at exponential times.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Fleet:
    """Workers, and what befalls them.

    Attributes
    ----------
    rate : images/s of a worker
    workers_per_node : a failure takes all of them
    failure_seconds : mean time that a node is up
    restart_seconds : from a failure until its workers compute again; also before the first image
    spread : standard deviation of the logarithm of the workers' rates
    """

    workers: int
    rate: float
    workers_per_node: int = 1
    failure_seconds: float = math.inf
    restart_seconds: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class Parts:
    """Parts of equal size, the last one smaller.

    Attributes
    ----------
    part_images : in a part
    claim_seconds : to claim a part, list its images and open its file
    sync_seconds : what is older than this at a kill is kept
    """

    part_images: int
    claim_seconds: float = 0.0
    sync_seconds: float = 1.0


@dataclass(frozen=True)
class Driver:
    """One process that deals out blocks and writes what comes back.

    Attributes
    ----------
    block_images : in a block; a worker that dies loses its block
    rate : images/s that the driver takes at most
    failure_seconds, restart_seconds : as of a node, but everybody waits
    sync_seconds : what came back before is kept
    """

    block_images: int
    rate: float = math.inf
    failure_seconds: float = math.inf
    restart_seconds: float = 0.0
    sync_seconds: float = 1.0


@dataclass
class Outcome:
    """How long it took, and where the workers' seconds went, summed over workers."""

    seconds: float = 0.0
    ideal_seconds: float = 0.0
    workers: int = 0
    useful: float = 0.0
    lost: float = 0.0
    down: float = 0.0
    claiming: float = 0.0
    failures: int = 0
    lost_images: list[float] = field(default_factory=list)

    @property
    def overhead(self) -> float:
        """Time beyond that of all workers at work from first to last, as a share of it."""
        return self.seconds / self.ideal_seconds - 1

    @property
    def idle(self) -> float:
        """Worker-seconds without work: at the end, or waiting for the driver."""
        spent = self.useful + self.lost + self.down + self.claiming
        return self.workers * self.seconds - spent

    def share(self, name: str) -> float:
        """Worker-seconds of a kind, as a share of those of the ideal."""
        return getattr(self, name) / (self.workers * self.ideal_seconds)


@dataclass
class _Worker:
    rate: float
    epoch: int = 0  # events of an earlier life are void
    work: float = 0.0  # images of the part or block in hand; 0 if it has none
    begun: float = 0.0  # when computing began
    down_until: float = 0.0
    has_ended: bool = False


class _Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, str, int, int]] = []
        self._count = 0

    def add(self, time: float, kind: str, who: int, epoch: int = 0) -> None:
        if time < math.inf:
            self._count += 1
            heapq.heappush(self._events, (time, self._count, kind, who, epoch))

    def pop(self) -> tuple[float, str, int, int]:
        time, _, kind, who, epoch = heapq.heappop(self._events)
        return time, kind, who, epoch


class _Simulation(ABC):
    """What both ways share: workers that start, fail by nodes, and start again."""

    def __init__(self, images: float, fleet: Fleet, rng: np.random.Generator) -> None:
        self.fleet, self.rng = fleet, rng
        rates = fleet.rate * np.exp(fleet.spread * rng.standard_normal(fleet.workers))
        self.workers = [_Worker(rate) for rate in rates.tolist()]
        self.outcome = Outcome(ideal_seconds=images / rates.sum(), workers=fleet.workers)
        self.clock = _Clock()
        for node in range(-(-fleet.workers // fleet.workers_per_node)):
            self.plan_failure(node, fleet.restart_seconds)
        for number in range(fleet.workers):
            self.restart(number, 0.0, fleet.restart_seconds)

    def plan_failure(self, node: int, up_from: float) -> None:
        if self.fleet.failure_seconds < math.inf:
            wait = self.rng.exponential(self.fleet.failure_seconds)
            self.clock.add(up_from + wait, "failure", node)

    def restart(self, number: int, now: float, seconds: float) -> None:
        worker = self.workers[number]
        worker.epoch += 1
        worker.work = 0.0
        until = max(worker.down_until, now + seconds)
        self.outcome.down += until - max(worker.down_until, now)
        worker.down_until = until
        self.clock.add(until, "free", number, worker.epoch)

    def fail_node(self, node: int, now: float) -> None:
        each = self.fleet.workers_per_node
        for number in range(node * each, min((node + 1) * each, len(self.workers))):
            if not self.workers[number].has_ended:
                self.outcome.failures += 1
                self.drop_work(number, now)
                self.restart(number, now, self.fleet.restart_seconds)
        self.plan_failure(node, now + self.fleet.restart_seconds)

    @abstractmethod
    def drop_work(self, number: int, now: float) -> None:
        """Lose what a worker has in hand, and was not synced."""

    def conclude(self, now: float) -> Outcome:
        self.outcome.seconds = now
        self.outcome.down -= sum(max(0.0, worker.down_until - now) for worker in self.workers)
        return self.outcome


class _PartsSimulation(_Simulation):
    def __init__(self, images: float, fleet: Fleet, parts: Parts, rng: np.random.Generator) -> None:
        super().__init__(images, fleet, rng)
        self.parts = parts
        n_whole, rest = divmod(images, parts.part_images)
        self.free = deque([float(parts.part_images)] * int(n_whole) + [float(rest)] * (rest > 0))

    def run(self) -> Outcome:
        n_left, now = len(self.free), 0.0
        while n_left:
            now, kind, who, epoch = self.clock.pop()
            if kind == "failure":
                self.fail_node(who, now)
                continue
            worker = self.workers[who]
            if epoch != worker.epoch:
                continue
            if kind == "done":
                self.outcome.useful += worker.work / worker.rate
                worker.work = 0.0
                n_left -= 1
            self._claim(who, now)
        return self.conclude(now)

    def _claim(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if not self.free:  # all others are held: this process ends
            worker.has_ended = True
            return
        worker.work = self.free.popleft()
        worker.begun = now + self.parts.claim_seconds
        self.outcome.claiming += self.parts.claim_seconds
        self.clock.add(worker.begun + worker.work / worker.rate, "done", number, worker.epoch)

    def drop_work(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if not worker.work:
            return
        computed = max(0.0, now - worker.begun)
        self.outcome.claiming -= max(0.0, worker.begun - now)
        sync = self.parts.sync_seconds
        kept = computed // sync * sync if sync else computed
        self.outcome.useful += kept
        self.outcome.lost += computed - kept
        self.outcome.lost_images.append((computed - kept) * worker.rate)
        self.free.append(worker.work - kept * worker.rate)


class _DriverSimulation(_Simulation):
    def __init__(
        self, images: float, fleet: Fleet, driver: Driver, rng: np.random.Generator
    ) -> None:
        super().__init__(images, fleet, rng)
        self.driver = driver
        n_whole, rest = divmod(images, driver.block_images)
        self.free = deque([float(driver.block_images)] * int(n_whole) + [float(rest)] * (rest > 0))
        total = sum(worker.rate for worker in self.workers)
        self.throttle = min(1.0, driver.rate / total)  # as all wait alike
        self.waiting: set[int] = set()
        self.unsynced: deque[tuple[float, float, float]] = deque()  # when, images, worker-seconds
        self._plan_driver_failure(fleet.restart_seconds)

    def _plan_driver_failure(self, up_from: float) -> None:
        if self.driver.failure_seconds < math.inf:
            wait = self.rng.exponential(self.driver.failure_seconds)
            self.clock.add(up_from + wait, "driver", 0)

    def run(self) -> Outcome:
        n_left, now = len(self.free), 0.0
        while n_left:
            now, kind, who, epoch = self.clock.pop()
            if kind == "failure":
                self.fail_node(who, now)
            elif kind == "driver":
                n_left += self._fail_driver(now)
            elif epoch == self.workers[who].epoch:
                if kind == "done":
                    self._finish(who, now)
                    n_left -= 1
                self._deal(who, now)
        return self.conclude(now)

    def _deal(self, number: int, now: float) -> None:
        if not self.free:
            self.waiting.add(number)
            return
        worker = self.workers[number]
        worker.work, worker.begun = self.free.popleft(), now
        seconds = worker.work / (worker.rate * self.throttle)
        self.clock.add(now + seconds, "done", number, worker.epoch)

    def _finish(self, number: int, now: float) -> None:
        worker = self.workers[number]
        spent = worker.work / worker.rate
        self.outcome.useful += spent
        self.unsynced.append((now, worker.work, spent))
        while self.unsynced and self.unsynced[0][0] <= now - self.driver.sync_seconds:
            self.unsynced.popleft()
        worker.work = 0.0

    def _put_back(self, work: float, now: float) -> None:
        self.free.append(work)
        if self.waiting:
            self._deal(self.waiting.pop(), now)

    def drop_work(self, number: int, now: float) -> None:
        worker = self.workers[number]
        self.waiting.discard(number)
        if worker.work:
            self.outcome.lost += (now - worker.begun) * self.throttle
            self.outcome.lost_images.append((now - worker.begun) * self.throttle * worker.rate)
            self._put_back(worker.work, now)

    def _fail_driver(self, now: float) -> int:
        """Lose what was not synced and all blocks in hand; return how many blocks came undone."""
        sync = self.driver.sync_seconds
        last_sync = now // sync * sync if sync else now
        undone = [block for block in self.unsynced if block[0] > last_sync]
        self.unsynced.clear()
        self.waiting.clear()
        for _, work, spent in undone:
            self.outcome.useful -= spent
            self.outcome.lost += spent
            self.free.append(work)
        self.outcome.failures += 1
        for number in range(len(self.workers)):
            self.drop_work(number, now)
        for number in range(len(self.workers)):
            self.restart(number, now, self.driver.restart_seconds)
        self._plan_driver_failure(now + self.driver.restart_seconds)
        return len(undone)


def simulate(images: float, fleet: Fleet, way: Parts | Driver, seed: int) -> Outcome:
    """One run from the first process to the last image."""
    rng = np.random.default_rng(seed)
    if isinstance(way, Parts):
        return _PartsSimulation(images, fleet, way, rng).run()
    return _DriverSimulation(images, fleet, way, rng).run()


def advise(overheads: dict[int, float], slack: float = 0.01) -> tuple[int, int]:
    """The smallest and the largest part size whose mean overhead is near the least."""
    limit = min(overheads.values()) + slack
    good = [size for size, overhead in overheads.items() if overhead <= limit]
    return min(good), max(good)
