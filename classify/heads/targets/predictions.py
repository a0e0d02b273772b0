"""Predicted labels, numbers or grades of images, and the CSV file that holds them."""

import csv
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from classify.heads.predictions import PROBABILITY_PREFIX, TARGET_HEADERS
from classify.kinds import MULTI, NUMBER
from classify.labels.targets.kinds import LABEL_SEPARATOR
from featurize.text import to_printable


@dataclass(frozen=True, eq=False)
class PredictedTargets:
    """Predictions for some images, of labels that are not one class.

    Attributes
    ----------
    kind : str
        ``multi``, ``number`` or ``grade``.
    paths : list of str
        Paths of the n images that could be read.
    names : tuple of str
        The labels, the name of the number, or the grades.
    values : float64 array of shape (n, T)
        Probabilities of the labels; the number; or the position of the grade.
    thresholds : float64 array of shape (T,), or None
        The probability from which an image gets each label.
    margin : float, or None
        Half the width of the intervals of numbers.
    failures : dict of str to str
        Reason for each image without a prediction, by path.
    proba : float64 array of shape (n,), or None
        Probability of the grade, where the head has probabilities.
    """

    kind: str
    paths: list[str]
    names: tuple[str, ...]
    values: np.ndarray
    thresholds: np.ndarray | None
    margin: float | None
    failures: dict[str, str]
    proba: np.ndarray | None = None

    @property
    def labels(self) -> list[str]:
        """The prediction for each image as text: labels joined by ``|``, a number, or a grade."""
        if self.kind == MULTI:
            chosen = self.values >= (0.5 if self.thresholds is None else self.thresholds)
            names = np.array(self.names, object)
            return [LABEL_SEPARATOR.join(names[row]) for row in chosen]
        if self.kind == NUMBER:
            return [f"{value:.6g}" for value in self.values[:, 0]]
        return [self.names[int(value)] for value in self.values[:, 0]]

    @property
    def notices(self) -> list[str]:
        """A message for each image without a prediction."""
        return [f"{path}: {reason}; no label" for path, reason in self.failures.items()]

    def write_csv(self, file: IO[str]) -> None:
        """Write a row for each image, with a header.

        ``path,label`` and the probability of each label in a column ``probability:LABEL``;
        ``path,number,low,high``, the last two empty where the head has no intervals; or
        ``path,grade,probability``, the last empty where it has no probabilities. Control
        characters are escaped for a terminal.

        Parameters
        ----------
        file : text file
            Open for writing.
        """
        format_text = to_printable if file.isatty() else str
        writer = csv.writer(file, lineterminator="\n")
        quoting_writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow([format_text(title) for title in self._list_titles()])
        for i, (path, label) in enumerate(zip(self.paths, self.labels, strict=True)):
            row = [format_text(path), format_text(label), *self._list_cells(i)]
            # Readers end a line at a carriage return, but csv does not quote it by itself.
            (quoting_writer if any("\r" in cell for cell in row) else writer).writerow(row)

    def _list_titles(self) -> list[str]:
        if self.kind == MULTI:
            return ["path", "label", *(f"{PROBABILITY_PREFIX}{name}" for name in self.names)]
        return TARGET_HEADERS[self.kind != NUMBER]

    def _list_cells(self, i: int) -> list[str]:
        if self.kind == MULTI:
            return [f"{value:.6g}" for value in self.values[i]]
        if self.kind == NUMBER:
            if self.margin is None:
                return ["", ""]
            value = self.values[i, 0]
            return [f"{value - self.margin:.6g}", f"{value + self.margin:.6g}"]
        return ["" if self.proba is None else f"{self.proba[i]:.6g}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the predictions for JSON.

        Returns
        -------
        dict
            ``kind``, ``predictions`` (a list with a dict for each image) and ``failures``.
        """
        predictions: list[dict[str, Any]] = []
        for i, (path, label) in enumerate(zip(self.paths, self.labels, strict=True)):
            entry: dict[str, Any] = {"path": path}
            if self.kind == MULTI:
                entry["labels"] = [name for name in label.split(LABEL_SEPARATOR) if name]
                pairs = zip(self.names, self.values[i].tolist(), strict=True)
                entry["probabilities"] = dict(pairs)
            elif self.kind == NUMBER:
                entry["number"] = float(self.values[i, 0])
                if self.margin is not None:
                    low, high = entry["number"] - self.margin, entry["number"] + self.margin
                    entry |= {"low": low, "high": high}
            else:
                entry["grade"] = label
                if self.proba is not None:
                    entry["probability"] = float(self.proba[i])
            predictions.append(entry)
        return {"kind": self.kind, "predictions": predictions, "failures": self.failures}
