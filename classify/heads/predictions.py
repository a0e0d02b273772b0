"""The labels that a head gives images, as a table in a file."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from classify.errors import OutputError
from featurize.files import check_target
from featurize.text import to_printable

MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best labels of some images.

    Attributes
    ----------
    paths : list of str
        n images that could be read.
    labels : object array of shape (n, K)
        The K best, as text, best first.
    values : float array of shape (n, K)
        Their probabilities, or scores.
    kind : str
        ``probability`` or ``score``: which of the two.
    failures : dict of str to str
        Why an image has no label, by path.
    """

    paths: list[str]
    labels: np.ndarray
    values: np.ndarray
    kind: str
    failures: dict[str, str]

    def write_csv(self, file: IO[str]) -> None:
        """Write ``path,label,probability``, or ``score``; further labels in further columns.

        A terminal takes some characters of a name for orders; it is shown them escaped.
        """
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        text = to_printable if file.isatty() else str
        writer.writerow(_make_header(self.kind, self.labels.shape[1]))
        for path, labels, values in zip(self.paths, self.labels, self.values, strict=True):
            cells = [
                c
                for pair in zip(labels, values, strict=True)
                for c in (text(pair[0]), f"{pair[1]:.6g}")
            ]
            line = [text(path), *cells]
            # A carriage return ends a line for whoever reads, but is not quoted by itself.
            (quoting if any("\r" in cell for cell in line) else writer).writerow(line)

    @property
    def notices(self) -> list[str]:
        """Which images have no label, and why."""
        return [f"{path}: {reason}; no label" for path, reason in self.failures.items()]

    def to_dict(self) -> dict[str, Any]:
        """``predictions``, ``kind`` and ``failures``."""
        rows = zip(self.paths, self.labels.tolist(), self.values.tolist(), strict=True)
        found = [{"path": p, "labels": names, self.kind: values} for p, names, values in rows]
        return {"kind": self.kind, "predictions": found, "failures": self.failures}


def _make_header(kind: str, count: int) -> list[str]:
    more = [f"_{k}" for k in range(2, count + 1)]
    return ["path", *(f"{name}{k}" for k in ["", *more] for name in ("label", kind))]


def check_predictions_file(
    path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None
) -> Path:
    """Refuse a place where predictions cannot be written, before any work is done for it.

    Parameters
    ----------
    path : path
    *inputs : path, or None
        What is read, and must not be written over.

    Returns
    -------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is no table of predictions.
    """

    def is_own(path: Path) -> bool:
        read = [name for name in inputs if name is not None and os.path.exists(name)]
        return _is_predictions_file(path) and not any(os.path.samefile(path, name) for name in read)

    return check_target(path, is_own, "a table of predictions", OutputError)


def _is_predictions_file(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            names = file.readline(MAX_HEADER_BYTES).rstrip("\n").split(",")
    except (OSError, ValueError):
        return False
    return any(names == _make_header(kind, len(names) // 2) for kind in ("probability", "score"))
