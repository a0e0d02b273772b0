"""Kinds of labels: one class, several labels, a number, or one of ordered grades."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from classify.errors import CallError
from classify.kinds import CLASS, GRADE, KINDS, MULTI, NUMBER
from featurize.text import did_you_mean

LABEL_SEPARATOR = "|"
UNKNOWN_CELLS = ("?", "na", "n/a", "nan", "null")
"""Cells, in lower case, that say that a label is not known."""
MIN_DISTINCT_NUMBERS = 10  # distinct values of a column that is taken for numbers
MAX_GRADES = 100
WordsLike = str | Sequence[str] | None


@dataclass(frozen=True)
class KindOptions:
    """The options that say what kind of labels a table holds.

    Attributes
    ----------
    kind : str, or None
        One of `KINDS`; None where it is to be recognised.
    columns : tuple of str
        Columns of 0 and 1, each for one label.
    order : tuple of str
        The grades, from the lowest.
    """

    kind: str | None = None
    columns: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @classmethod
    def from_options(
        cls, kind: str | None = None, columns: WordsLike = None, order: WordsLike = None
    ) -> Self:
        """Check the options as the user gives them.

        Parameters
        ----------
        kind : str, optional
            ``class``, ``multi``, ``number`` or ``grade``.
        columns, order : str or sequence of str, optional
            A text is split at its commas. `columns` makes the kind ``multi``, `order` ``grade``.

        Returns
        -------
        KindOptions

        Raises
        ------
        CallError
            If there is no such kind, an option does not go with it, or a word is there twice.
        """
        if kind is not None and kind not in KINDS:
            raise CallError(
                f"labels are of the kind {', '.join(KINDS)}, not {kind!r}"
                f"{did_you_mean(kind, KINDS)}"
            )
        words = {"columns": split_words(columns), "order": split_words(order)}
        for option, implied in (("columns", MULTI), ("order", GRADE)):
            if not words[option]:
                continue
            if kind not in (None, implied):
                raise CallError(f"--{option} is for labels of the kind {implied}, not {kind}")
            if len(words[option]) != len(set(words[option])):
                raise CallError(f"--{option} names each once, not {','.join(words[option])}")
            kind = implied
        if words["columns"] and words["order"]:
            raise CallError("labels are of one kind: give --columns or --order, not both")
        if len(words["order"]) == 1:
            raise CallError("--order names two grades or more, from the lowest to the highest")
        return cls(kind, words["columns"], words["order"])

    @property
    def needs_table(self) -> bool:
        """Whether only a table can hold such labels, not the names of folders."""
        return self.kind not in (None, CLASS)


def split_words(words: WordsLike) -> tuple[str, ...]:
    """Split a list that may be given as text.

    Parameters
    ----------
    words : str or sequence of str, optional
        A text is split at its commas.

    Returns
    -------
    tuple of str
        Without the spaces around them, and without empty ones.
    """
    split = words.split(",") if isinstance(words, str) else words or ()
    return tuple(word for text in split if (word := str(text).strip()))


def recognise_kind(cells: Sequence[str]) -> str:
    """Recognise the kind of labels by the cells of their column.

    Numbers are taken for numbers only where one has a fraction: whole numbers are as often names
    of classes. Grades are never recognised, as nothing tells their order.

    Parameters
    ----------
    cells : sequence of str
        One for each image; an empty one says nothing.

    Returns
    -------
    str
        ``multi`` where cells hold several labels, separated by ``|``, of which one is in several
        cells; ``number`` where all are numbers, of ten values or more, and some have a fraction;
        else ``class``.
    """
    known = {cell for cell in cells if cell and not is_unknown(cell)}
    if any(LABEL_SEPARATOR in cell for cell in known):
        counts = Counter(label for cell in known for label in set(split_labels(cell)))
        return MULTI if counts.most_common(1)[0][1] > 1 else CLASS
    if len(known) < MIN_DISTINCT_NUMBERS:
        return CLASS
    numbers = [parse_number(cell) for cell in known]
    is_number = all(number is not None for number in numbers)
    return NUMBER if is_number and any(number % 1 for number in numbers if number) else CLASS


def split_labels(cell: str) -> list[str]:
    """Split a cell into its labels.

    Parameters
    ----------
    cell : str
        Labels separated by ``|``.

    Returns
    -------
    list of str
        Without the spaces around them; empty for an empty cell.
    """
    return [label for part in cell.split(LABEL_SEPARATOR) if (label := part.strip())]


def parse_number(cell: str) -> float | None:
    """Parse a number as tables have it.

    Parameters
    ----------
    cell : str
        ``12``, ``-0.5`` or ``1e3``; digits of other scripts and separators are no numbers here.

    Returns
    -------
    float, or None
        None where it is not a finite number.
    """
    if not cell.isascii() or "_" in cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def is_unknown(cell: str) -> bool:
    """Tell whether a cell says that a label is not known.

    Parameters
    ----------
    cell : str

    Returns
    -------
    bool
        True for ``?``, ``NA``, ``nan`` and their like; False for an empty cell.
    """
    return cell.strip().lower() in UNKNOWN_CELLS
