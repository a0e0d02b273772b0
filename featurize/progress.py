"""Progress of long work: one protocol for every stage.

Functions that take long have two callbacks. `report` is called often, with a `Progress`. `say` is
called from time to time, with a sentence. `featurize.cli.progress` draws both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Progress of one stage.

    Attributes
    ----------
    stage : str
        Name of the stage.
    done, total : int
        Work done and all work, in the stage's own unit.
    note : str
        Further information; may be empty.
    """

    @property
    def stage(self) -> str:
        """Name of the stage: ``embedding``, ``heads``, ``epoch 3 of 15``."""

    @property
    def done(self) -> int:
        """Amount of work done."""

    @property
    def total(self) -> int:
        """Total amount of work."""

    @property
    def note(self) -> str:
        """Further information, such as a rate or the latest score; may be empty."""


Report = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A `Progress` as plain data.

    Attributes
    ----------
    stage : str
        Name of the stage.
    done, total : int
        Work done and all work, in the stage's own unit.
    note : str
        Further information; may be empty.
    """

    stage: str
    done: int
    total: int
    note: str = ""


def ignore(_: object) -> None:
    """Ignore a report: the default callback.

    Parameters
    ----------
    _ : object
        A `Progress` or a sentence; not used.
    """
