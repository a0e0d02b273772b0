"""Who works at which block: how an image that ends its worker is found and costs one row.

Ray starts a lost worker again, and gives its block to another one, without end. So a block is
computed at once on its first try only. On later tries its rows are computed one by one, and each is
held here before it is touched. The row that was held when a worker was lost is not tried again.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measures:
    """How a block was computed.

    Attributes
    ----------
    n_images : int
        Images through the network.
    stage_seconds, wait_seconds : dict of str to float
        As in `featurize.pipeline.stats.RunStats`.
    engine, engine_why : str
        The engine that ran last, and why it was chosen.
    sentences : tuple of str
        What the worker has to say of its choices.
    """

    n_images: int
    stage_seconds: dict[str, float]
    wait_seconds: dict[str, float]
    engine: str
    engine_why: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Why a worker cannot go on, and nor can the run.

    Attributes
    ----------
    error : str
        Name of an error's class.
    message : str
        What the user is told.
    """

    error: str
    message: str


@dataclass
class News:
    """What has happened since the last look.

    Attributes
    ----------
    n_begun, n_losses : int
        Blocks begun, and workers lost, since the beginning.
    measures : list of Measures
        Of the blocks finished since.
    problem : Problem, optional
    """

    n_begun: int = 0
    n_losses: int = 0
    measures: list[Measures] = field(default_factory=list)
    problem: Problem | None = None


class Ledger:
    """What is known of the blocks in hand; an actor on the driver's machine."""

    def __init__(self) -> None:
        self._n_tries: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._fatal: dict[int, list[int]] = {}
        self._news = News()

    def begin(self, block: int) -> tuple[int, list[int]]:
        """Note that a worker begins with a block.

        Parameters
        ----------
        block : int

        Returns
        -------
        n_tries : int
            1 on the first try. More if a worker was lost with the block in hand.
        fatal : list of int
            Rows that took their worker down.
        """
        n_tries = self._n_tries[block] = self._n_tries.get(block, 0) + 1
        self._news.n_begun += 1
        if n_tries > 1:
            self._news.n_losses += 1
        held = self._held.pop(block, None)
        if held is not None:
            self._fatal.setdefault(block, []).append(held)
        return n_tries, self._fatal.get(block, [])

    def hold(self, block: int, row: int) -> None:
        """Note which row a worker is about to touch.

        Parameters
        ----------
        block, row : int
        """
        self._held[block] = row

    def finish(self, block: int, measures: Measures) -> None:
        """Note that a block is done. If its rows are lost on their way, it begins anew.

        Parameters
        ----------
        block : int
        measures : Measures
        """
        self._held.pop(block, None)
        self._n_tries.pop(block, None)
        self._news.measures.append(measures)

    def report_problem(self, problem: Problem) -> None:
        """Note why the run cannot go on; the first reason counts.

        Parameters
        ----------
        problem : Problem
        """
        self._news.problem = self._news.problem or problem

    def take_news(self) -> News:
        """Tell what has happened since the last call.

        Returns
        -------
        News
        """
        news = self._news
        self._news = News(news.n_begun, news.n_losses, problem=news.problem)
        return news
