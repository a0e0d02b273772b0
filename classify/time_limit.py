"""A time limit: what is left of it, and whether a next step fits into that."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from featurize.errors import RunInterruptedError
from featurize.progress import Progress
from featurize.text import format_duration

CAUTION = 1.1  # by which an estimate is taken to be too low
SUGGESTED_STEP = 60.0  # seconds; a longer limit is suggested in whole ones

Step = TypeVar("Step", bound=Progress)


class TimeLimit(float):
    """A time limit of a command, or none: a number of seconds that knows when it began.

    So it is given where functions take seconds, and still counts from the start of the command.

    Parameters
    ----------
    seconds : float, optional
        How long the work may take. There is no limit if not given.
    started : float, optional
        When it began, by `time.monotonic`, in seconds; now, if not given.

    Attributes
    ----------
    seconds : float
        The limit; infinite where there is none.
    deadline : float
        A time of `time.monotonic`, in seconds; infinite where there is none.
    """

    def __new__(cls, seconds: float | None = None, started: float | None = None) -> Self:
        """Make the number; `__init__` starts to count."""
        return super().__new__(cls, math.inf if seconds is None else seconds)

    def __init__(self, seconds: float | None = None, started: float | None = None) -> None:
        self.seconds = float(self)
        self._started = time.monotonic() if started is None else started
        self.deadline = self._started + self.seconds

    @classmethod
    def of(cls, value: float | None, started: float) -> "TimeLimit":
        """Make a limit of what a function was given.

        Parameters
        ----------
        value : float, optional
            Seconds from `started` on, or a limit, which is returned.
        started : float
            A time of `time.monotonic`, in seconds.

        Returns
        -------
        TimeLimit
        """
        return value if isinstance(value, TimeLimit) else cls(value, started)

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self.seconds < math.inf

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when the time is up."""
        return self.deadline - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Tell whether work of an estimated length fits into what is left.

        Parameters
        ----------
        seconds : float
            The estimate. It is taken to be a little too low.

        Returns
        -------
        bool
        """
        return CAUTION * seconds <= self.left

    def suggest(self, seconds: float) -> str:
        """Suggest a limit into which work of an estimated length fits.

        Parameters
        ----------
        seconds : float
            The estimate of what is still to do; what has passed is added.

        Returns
        -------
        str
            As users write it: ``7m``.
        """
        needed = time.monotonic() - self._started + CAUTION**2 * seconds
        return f"{math.ceil(needed / SUGGESTED_STEP):.0f}m"

    def check(self, doing: str) -> None:
        """Refuse to go on when the time is up.

        Parameters
        ----------
        doing : str
            What is being done, or would come next.

        Raises
        ------
        RunInterruptedError
            If no time is left.
        """
        if self.left < 0:
            raise RunInterruptedError(
                f"the time limit of {format_duration(self.seconds)} is up at: {doing}. No result "
                "is saved yet. Rows, heads and epochs that are finished are kept: the same command "
                "goes on from there, with a longer --max-time"
            )

    def guard(self, report: Callable[[Step], Any]) -> Callable[[Step], None]:
        """Wrap a `report` so that work ends where it reports after the time is up.

        Parameters
        ----------
        report : callable
            Called with a `featurize.progress.Progress`.

        Returns
        -------
        callable
            It raises as `check` does. Without a limit it is `report` itself.
        """
        if not self.is_set:
            return report

        def report_in_time(step: Step) -> None:
            report(step)
            self.check(f"{step.stage}, {step.done:,} of {step.total:,}")

        return report_in_time


@dataclass
class EpochBudget:
    """Whether a time limit allows a further epoch, and all that follows training.

    Attributes
    ----------
    limit : TimeLimit
    after_epoch : float
        Seconds to validate; an estimate.
    after_training : float
        Seconds to calibrate, test and save; an estimate.
    longest_epoch : float
        Seconds of the longest finished epoch, with validation and checkpoint.
    is_spent : bool
        Whether training ended because of the limit.
    """

    limit: TimeLimit
    after_epoch: float = 0.0
    after_training: float = 0.0
    longest_epoch: float = 0.0
    is_spent: bool = False

    def allows_epoch(self) -> bool:
        """Tell whether another epoch fits, by the longest one so far."""
        return self.limit.allows(self.longest_epoch + self.after_training)

    def allows_steps(self, n_steps: int, seconds_per_step: float) -> bool:
        """Tell whether the steps that an epoch still has fit, and what follows them.

        Parameters
        ----------
        n_steps : int
        seconds_per_step : float

        Returns
        -------
        bool
        """
        return self.limit.allows(
            n_steps * seconds_per_step + self.after_epoch + self.after_training
        )

    def make_error(self, n_steps: int, seconds_per_step: float) -> RunInterruptedError:
        """Make the error of a training that cannot finish its first epoch.

        Parameters
        ----------
        n_steps : int
            The steps that this epoch still has.
        seconds_per_step : float

        Returns
        -------
        RunInterruptedError
        """
        seconds = n_steps * seconds_per_step + self.after_epoch
        return RunInterruptedError(
            f"no epoch fits into the time limit: the first needs {format_duration(seconds)} more, "
            f"then {format_duration(self.after_training)} go to testing and saving, and "
            f"{format_duration(max(0.0, self.limit.left))} are left. Give "
            f"--max-time {self.limit.suggest(seconds + self.after_training)} or more"
        )
