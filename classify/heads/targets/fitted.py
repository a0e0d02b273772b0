"""A trained head for several labels, numbers or grades."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from classify.data.folds import hash_prefixes
from classify.data.preparation import ROOT_L2, root_l2_by_layer
from classify.errors import CallError
from classify.evaluation.targets.calibration import apply_label_calibration
from classify.heads.models import LinearModel, MLPModel, SklearnModel
from classify.heads.source import FeatureSource
from classify.heads.targets.models import EstimatorModel
from classify.heads.targets.registry import ORDINAL
from classify.kinds import GRADE, MULTI, NUMBER
from featurize.cache.reader import FeatureCache

CUMULATIVE = (ORDINAL, "mlp")
"""Heads whose cutpoints are those of log odds; those of regressions are half-way between grades."""


@dataclass(frozen=True, eq=False)
class FittedTargets:
    """A head for labels that are not one class, as `classify.fit` and `classify.load_head` give it.

    Attributes
    ----------
    head : str
        Kind of head: ``ridge``, ``ordinal``, ...
    kind : str
        ``multi``, ``number`` or ``grade``.
    names : tuple of str
        The T labels; the name of the number; or the G grades from the lowest.
    prepare : str
        ``root-l2`` or ``standardise``, as in `classify.heads.fitted.FittedHead`.
    scorer : LinearModel, MLPModel, EstimatorModel or SklearnModel
        The model, from prepared features to outputs.
    settings : dict of str to float
        Selected params.
    task : str
        Name of the task.
    source : FeatureSource
        The backbone, and the layers whose features are joined to D columns.
    record : dict
        Results of the fit; the keys of `classify.heads.targets.record.TargetResult`.
    seen : uint64 array
        Sorted hash prefixes of the images that the head was trained or its param selected on.
    calibration : float64 array of shape (2, T), or None
        Several labels: slope and bias from outputs to log odds. None where the outputs are log
        odds.
    thresholds : float64 array of shape (T,), or None
        Several labels: the probability from which an image gets each label.
    cutpoints : float64 array of shape (G - 1,), or None
        Grades: an image has as many grades below its own as there are cutpoints below the output.
        None where each output is the decision value of one grade.
    grades : int array of shape (K,), or None
        Grades: the grade of each output, where each has one.
    margin : float, or None
        Numbers: half the width of an interval that covers `coverage` of new images.
    coverage : float, or None
        The share that `margin` covers.
    notices : tuple of str
        Messages for the user about this fit. Not saved.
    network : path, or None
        File that also holds the network, where it was fine-tuned with the head.
    """

    head: str
    kind: str
    names: tuple[str, ...]
    prepare: str
    scorer: LinearModel | MLPModel | EstimatorModel | SklearnModel
    settings: Mapping[str, float]
    task: str
    source: FeatureSource
    record: Mapping[str, Any]
    seen: np.ndarray
    calibration: np.ndarray | None = None
    thresholds: np.ndarray | None = None
    cutpoints: np.ndarray | None = None
    grades: np.ndarray | None = None
    margin: float | None = None
    coverage: float | None = None
    notices: tuple[str, ...] = ()
    network: Path | None = None

    def __repr__(self) -> str:
        layers = "+".join(layer.name for layer in self.source.layers)
        params = "".join(f", {name}={value:g}" for name, value in self.settings.items())
        return f"FittedTargets({self.head} on {layers}, {self.kind}{params})"

    def outputs(self, X: np.ndarray) -> np.ndarray:
        """Compute what the model gives, before calibration and thresholds.

        Parameters
        ----------
        X : array of shape (n, D)
            Features as in the cache; converted to float32.

        Returns
        -------
        float32 array of shape (n, T)
            A column for each label; one for a number or a grade, or one for each of `grades`.

        Raises
        ------
        CallError
            If `X` has another shape, or outputs are not finite.
        """
        X = np.asarray(X, np.float32)
        if X.ndim != 2 or X.shape[1] != self.scorer.dim:
            raise CallError(
                f"this head takes features of shape (n, {self.scorer.dim}), not {X.shape}"
            )
        if self.prepare == ROOT_L2:
            X = root_l2_by_layer(X, [layer.dim for layer in self.source.layers])
        return self.scorer.decision_values(X)

    def values_of(self, outputs: np.ndarray) -> np.ndarray:
        """Turn outputs into predictions as numbers.

        Parameters
        ----------
        outputs : float array of shape (n, T)
            As `outputs` returns them.

        Returns
        -------
        float64 array of shape (n, T)
            Probabilities of the labels; the number; or the position of the grade in `names`.
        """
        if self.kind == MULTI:
            if self.calibration is None:
                return np.asarray(expit(outputs.astype(np.float64)))
            return apply_label_calibration(outputs, self.calibration)
        if self.kind == NUMBER:
            return outputs.astype(np.float64)
        return decide_grades(outputs, self.cutpoints, self.grades)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict the labels of each row.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `outputs`.

        Returns
        -------
        array of shape (n, T) or (n,)
            Several labels: int64 (n, T), 1 where a row has the label. A number: float64 (n,).
            Grades: their names, str (n,).
        """
        values = self.values_of(self.outputs(X))
        if self.kind == MULTI:
            thresholds = 0.5 if self.thresholds is None else self.thresholds
            return (values >= thresholds).astype(np.int64)
        if self.kind == NUMBER:
            return values[:, 0]
        names: np.ndarray = np.array(self.names)[values[:, 0].astype(np.intp)]
        return names

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Compute probabilities.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `outputs`.

        Returns
        -------
        float64 array of shape (n, T), or (n, G) for grades
            Of several labels each by itself; of grades rows that sum to 1.

        Raises
        ------
        CallError
            If the head predicts numbers, or grades as rounded numbers.
        """
        return self.probabilities(self.outputs(X))

    @property
    def has_probabilities(self) -> bool:
        """Whether `predict_proba` gives any."""
        is_cumulative = self.head in CUMULATIVE and self.cutpoints is not None
        return self.kind == MULTI or self.grades is not None or is_cumulative

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Compute probabilities from outputs.

        Parameters
        ----------
        outputs : float array of shape (n, T)
            As `outputs` returns them.

        Returns
        -------
        float64 array of shape (n, T), or (n, G) for grades
            As `predict_proba` returns them.

        Raises
        ------
        CallError
            As `predict_proba` does.
        """
        if self.kind == MULTI:
            return self.values_of(outputs)
        if self.kind == GRADE and self.grades is not None:
            proba = np.zeros((len(outputs), len(self.names)))
            proba[:, self.grades] = softmax(outputs.astype(np.float64), axis=1)
            return proba
        if self.head in CUMULATIVE and self.cutpoints is not None:
            above = expit(outputs.astype(np.float64) - self.cutpoints)
            edges = np.ones((len(outputs), 1))
            return np.asarray(-np.diff(above, axis=1, prepend=edges, append=0 * edges))
        raise CallError(f"a {self.head} head for the kind {self.kind} has no probabilities")

    def predict_interval(self, X: np.ndarray) -> np.ndarray:
        """Predict intervals of a number.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `outputs`.

        Returns
        -------
        float64 array of shape (n, 2)
            Lower and upper ends; they cover the share `coverage` of images like those held out.

        Raises
        ------
        CallError
            If the head does not predict numbers, or nothing was held out.
        """
        if self.kind != NUMBER or self.margin is None:
            raise CallError(
                "this head has no intervals: they are for numbers, from held-out images"
            )
        values = self.values_of(self.outputs(X))
        return np.concatenate([values - self.margin, values + self.margin], axis=1)

    def trained_on(self, contents: np.ndarray) -> np.ndarray:
        """Find the images that the head was trained or its param selected on.

        Parameters
        ----------
        contents : uint8 array of shape (n, 32)
            SHA-256 of the images.

        Returns
        -------
        bool array of shape (n,)
            True for images that the head has seen.
        """
        return np.isin(hash_prefixes(contents), self.seen)

    def check_against(self, cache: FeatureCache) -> None:
        """Check that a cache has the features that the head was trained on.

        Parameters
        ----------
        cache : FeatureCache
            The cache to predict or evaluate on.

        Raises
        ------
        HeadMismatchError, UnknownLayerError
            As `classify.heads.fitted.FeatureSource.check_against`.
        """
        self.source.check_against(cache)


def decide_grades(
    outputs: np.ndarray, cutpoints: np.ndarray | None, grades: np.ndarray | None
) -> np.ndarray:
    """Turn outputs into grades.

    Parameters
    ----------
    outputs : float array of shape (n, 1) or (n, K)
    cutpoints : float64 array of shape (G - 1,), or None
        For one output: the grade is the number of cutpoints below it.
    grades : int array of shape (K,), or None
        For K outputs: the grade of each. The greatest is predicted.

    Returns
    -------
    float64 array of shape (n, 1)
        Positions of the grades, from 0.
    """
    if grades is not None:
        chosen: np.ndarray = grades[outputs.argmax(axis=1)]
        return chosen.astype(np.float64)[:, None]
    if cutpoints is None:
        raise CallError("grades need cutpoints, or an output for each")
    grade = np.searchsorted(cutpoints, outputs[:, 0].astype(np.float64))
    return grade.astype(np.float64)[:, None]
