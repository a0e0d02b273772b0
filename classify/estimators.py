"""What all heads have in common as scikit-learn classifiers; and `HeadClassifier`, any of them."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from classify.calibration import temperature
from classify.errors import CallError
from classify.heads import Head, named
from classify.lessons import make_lesson
from classify.training import train
from classify.weights import checked


class HeadEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head on features, its setting chosen by validation or given.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Those of rows that weigh something.
    n_features_in_ : int
    path_ : list of (setting, mean held-out loss)
        What was tried, from strong to weak regularisation; one pair where the setting was given,
        none where nothing could be held out.
    temperature_ : float, or None
        What the scores are divided by for calibrated probabilities; None where nothing could be
        held out.
    notices_ : tuple of str
        What a user should know about this fit: a solver that did not converge, a path that ended at
        the end of its grid.
    scorer_ : Linear or Fitted
        From features to K scores.
    """

    _head: Head  # as it was trained

    def _learn(
        self,
        head: Head,
        X: Any,
        y: Any,
        *,
        setting: float | None = None,
        sample_weight: Any = None,
        **options: Any,
    ) -> float | None:
        """Train on arrays.

        Parameters
        ----------
        setting : float, optional
            In scikit-learn's terms; chosen from the head's grid if not given.
        options
            Of `classify.lessons.make_lesson`.

        Returns
        -------
        float, or None
            The setting, in scikit-learn's terms.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        weights = checked(sample_weight, len(y))
        used = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
        self.classes_, numbers = np.unique(y[used], return_inverse=True)
        if len(self.classes_) < 2:
            raise CallError("a classifier needs at least two classes; the data has only one class")
        unit = _unit(head, len(self.classes_))
        if setting is not None:
            head = replace(head, grid=(setting / unit,))
        with threadpool_limits(1):
            lesson = make_lesson(
                head,
                X,
                numbers,
                self.classes_,
                used,
                row_weights=None if weights is None else weights[used],
                **options,
            )
            found = train(head, lesson)
        self._head, self.scorer_, choice = head, found.scorer, found.choice
        self._probabilistic, self.notices_ = found.probabilistic, tuple(found.notices)
        self.temperature_ = None
        self.path_: list[tuple[float | None, float]] = []
        if choice is not None:
            self.temperature_ = temperature(choice.scores, lesson.y[found.held])
            self.path_ = [(_times(tried, unit), loss) for tried, loss, *_ in choice.path]
        return _times(found.setting, unit)

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.scorer_.scores(validate_data(self, X, dtype=np.float32, reset=False))

    @property
    def _half(self) -> float:
        """What the difference of two classes' scores is multiplied by to be scikit-learn's one.

        Two vectors that are fitted to targets, or margins, of 1 and -1 are each other's opposite:
        scikit-learn has the one, and their difference is twice as much.
        """
        signs = self._head.loss in ("hinge", "calibrated")
        return 0.5 if signs and self._head.way != "delegated" else 1.0

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: float32 (n, K); for two classes (n,), above 0 for the second."""
        scores = self._scores(X)
        if len(self.classes_) > 2:
            return scores
        return np.asarray((scores[:, 1] - scores[:, 0]) * np.float32(self._half))

    def predict(self, X: Any) -> np.ndarray:
        """The best class of each row: (n,)."""
        best = self._scores(X).argmax(axis=1)
        found: np.ndarray = self.classes_[best]
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, calibrated by temperature on held-out scores.

        Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML. The temperature is
        learnt from scores that each fold gives the rows it holds out, whether the setting was
        chosen by them or given. Where nothing could be held out, softmax and LDA give the
        probabilities of their model.

        Returns
        -------
        float64 array of shape (n, K)
            Each row's sum is 1.

        Raises
        ------
        CallError
            If nothing could be held out, and the scores are no logarithms of probabilities.
        """
        scores = self._scores(X)
        if self.temperature_ is None and not self._probabilistic:
            raise CallError(
                "there are scores but no probabilities: nothing could be held out to calibrate "
                "them with; that takes two rows of a class, in two groups where there are groups"
            )
        found: np.ndarray = softmax(scores.astype(np.float64) / (self.temperature_ or 1), axis=1)
        return found


class HeadClassifier(HeadEstimator):
    """One of the heads by its name, its setting chosen by validation.

    Each linear head has a class of its own with its parameters named, which this is a short way to:
    `SoftmaxClassifier`, `LinearSVMClassifier`, `RidgeHeadClassifier`, `ShrunkLDAClassifier`,
    `NearestMeanClassifier`.

    Parameters
    ----------
    head : str
        As in `classify.fit`.
    cv : None, int, splitter or iterable
        Folds that the setting is chosen by, and the probabilities calibrated: five stratified ones
        if not given.
    class_weight : None, "balanced" or dict
        Means nothing to ``ncm`` and ``knn``.
    seed : int
        Decides the folds.

    Attributes
    ----------
    setting_ : float, or None
        What was chosen, as a record of `classify.fit` has it: C of two classes in softmax is half
        of `SoftmaxClassifier`'s.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5", layer="layer3"), HeadClassifier("ridge"))``
    """

    def __init__(
        self, head: str = "softmax", *, cv: Any = None, class_weight: Any = None, seed: int = 0
    ) -> None:
        self.head = head
        self.cv = cv
        self.class_weight = class_weight
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Choose the setting and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.
        groups : array of shape (n,), optional
            Rows of one group are never on both sides of a fold.

        Raises
        ------
        UnknownHead, ValueError
        """
        kind = named(self.head)
        found = self._learn(
            kind, X, y, class_weight=self.class_weight, cv=self.cv, groups=groups, seed=self.seed
        )
        self.setting_ = _times(found, 1 / _unit(kind, len(self.classes_)))
        return self


def _unit(head: Head, n_classes: int) -> float:
    """What the setting of scikit-learn is, times ours.

    Of two classes softmax penalises two vectors w and -w, and scikit-learn their difference 2w
    with half its square: twice the penalty, so that its C is twice as large for the same minimum.
    """
    return 2.0 if n_classes == 2 and head.way == "minimised" and head.loss == "log" else 1.0


def _times(setting: float | None, unit: float) -> float | None:
    return None if setting is None else setting * unit
