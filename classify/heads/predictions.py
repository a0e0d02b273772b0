"""Predicted labels of images, and the CSV file that holds them."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from classify.errors import OutputError
from classify.labels.targets.kinds import LABEL_SEPARATOR
from featurize.files import check_target
from featurize.text import to_printable

MAX_HEADER_BYTES = 1 << 20
TARGET_HEADERS = (["path", "number", "low", "high"], ["path", "grade", "probability"])
"""Headers for numbers and for grades; a table that somebody wrote has others."""
PROBABILITY_PREFIX = "probability:"
"""How the title of a column begins that holds the probabilities of one of several labels."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The most probable labels of some images.

    Attributes
    ----------
    paths : list of str
        Paths of the n images that could be read.
    labels : object array of shape (n, K)
        The K best labels of each image as str, best first.
    values : float array of shape (n, K)
        Their probabilities, or decision values.
    kind : str
        ``probability`` or ``score``: what `values` holds.
    failures : dict of str to str
        Reason for each image without a label, by path.
    sets : list of lists of str, or None
        The classes that each image may have; None where the head has no prediction sets.
    unknown : bool array of shape (n,), or None
        Whether an image is unlike all that the head was trained on; None where it cannot tell.
    abstain : bool
        Whether images of which the head is not sure get no label.
    """

    paths: list[str]
    labels: np.ndarray
    values: np.ndarray
    kind: str
    failures: dict[str, str]
    sets: list[list[str]] | None = None
    unknown: np.ndarray | None = None
    abstain: bool = False

    def is_open(self, i: int) -> bool:
        """Tell whether an image is left without a label.

        Parameters
        ----------
        i : int
            Position of the image.

        Returns
        -------
        bool
            Where the head may abstain: True if the image is unknown, or its set is not one class.
        """
        if not self.abstain:
            return False
        is_single = self.sets is None or len(self.sets[i]) == 1
        return not is_single or (self.unknown is not None and bool(self.unknown[i]))

    def write_csv(self, file: IO[str]) -> None:
        """Write ``path,label,probability`` or ``path,label,score`` rows, with a header.

        Further labels are in further columns. Where the head knows them, ``set`` follows, the
        classes that the image may have, joined by ``|``, and ``unknown``, 1 for an image that is
        unlike all that the head was trained on. With `abstain` the first label is empty where the
        head is not sure. Control characters are escaped for a terminal.

        Parameters
        ----------
        file : text file
            Open for writing.
        """
        writer = csv.writer(file, lineterminator="\n")
        quoting_writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        format_text = to_printable if file.isatty() else str
        header = _make_header(self.kind, self.labels.shape[1])
        header += ["set"] * (self.sets is not None) + ["unknown"] * (self.unknown is not None)
        writer.writerow(header)
        rows = zip(self.paths, self.labels, self.values, strict=True)
        for i, (path, labels, values) in enumerate(rows):
            cells = [
                cell
                for label, value in zip(labels, values, strict=True)
                for cell in (format_text(label), f"{value:.6g}")
            ]
            if self.is_open(i):
                cells[0] = ""
            if self.sets is not None:
                cells.append(format_text(LABEL_SEPARATOR.join(self.sets[i])))
            if self.unknown is not None:
                cells.append(str(int(self.unknown[i])))
            row = [format_text(path), *cells]
            # Readers end a line at a carriage return, but csv does not quote it by itself.
            (quoting_writer if any("\r" in cell for cell in row) else writer).writerow(row)

    @property
    def notices(self) -> list[str]:
        """A message for each image without a label."""
        return [f"{path}: {reason}; no label" for path, reason in self.failures.items()]

    def to_dict(self) -> dict[str, Any]:
        """Return the predictions for JSON.

        Returns
        -------
        dict
            ``kind``, ``predictions`` (a list with a dict for each image) and ``failures``.
        """
        rows = zip(self.paths, self.labels.tolist(), self.values.tolist(), strict=True)
        predictions: list[dict[str, Any]] = [
            {"path": p, "labels": names, self.kind: values} for p, names, values in rows
        ]
        for i, entry in enumerate(predictions):
            if self.sets is not None:
                entry["set"] = self.sets[i]
            if self.unknown is not None:
                entry["unknown"] = bool(self.unknown[i])
            if self.abstain:
                entry["open"] = self.is_open(i)
        return {"kind": self.kind, "predictions": predictions, "failures": self.failures}


def _make_header(kind: str, count: int) -> list[str]:
    suffixes = ["", *(f"_{k}" for k in range(2, count + 1))]
    return ["path", *(f"{name}{suffix}" for suffix in suffixes for name in ("label", kind))]


def check_predictions_file(
    path: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None
) -> Path:
    """Check that predictions can be written to a path, before any work is done.

    Parameters
    ----------
    path : path
        The output file. An existing table of predictions may be replaced.
    *inputs : path, or None
        Input files, which must not be overwritten.

    Returns
    -------
    Path
        The file to write.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the file exists and is not a table of
        predictions.
    """

    def is_own(path: Path) -> bool:
        given = [name for name in inputs if name is not None]
        return _is_predictions_file(path) and not any(_is_same_file(path, name) for name in given)

    return check_target(path, is_own, "a table of predictions", OutputError)


def _is_same_file(path: Path, other: str | os.PathLike[str]) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one that does not exist
        return False


def _is_predictions_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            names = file.readline(MAX_HEADER_BYTES).rstrip("\n").split(",")
    except (OSError, ValueError):
        return False
    if names in TARGET_HEADERS:
        return True
    if names[:2] == ["path", "label"] and names[2:] and names[2].startswith(PROBABILITY_PREFIX):
        return all(name.startswith(PROBABILITY_PREFIX) for name in names[2:])
    # A label table, path,label, is none.
    names = [name for name in names if name not in ("set", "unknown")]
    return any(names == _make_header(kind, len(names) // 2) for kind in ("probability", "score"))
