"""How long work reports how far it has come: one protocol for every stage.

Functions that take long have two callbacks. `report` is called often, with a `Progress`; `say` is
called with a sentence now and then. `featurize.cli.progress` draws both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """How far one stage has come."""

    @property
    def stage(self) -> str:
        """What is going on: ``embedding``, ``heads``, ``epoch 3 of 15``."""

    @property
    def done(self) -> int:
        """How much of it is done."""

    @property
    def total(self) -> int:
        """How much there is to do."""

    @property
    def note(self) -> str:
        """What else is known: a rate, the latest score; may be empty."""


Report = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A `Progress` of nothing but its parts.

    Attributes
    ----------
    stage : str
    done, total : int
    note : str
    """

    stage: str
    done: int
    total: int
    note: str = ""


def ignore(_: object) -> None:
    """Report to nobody."""
