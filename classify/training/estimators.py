"""What all heads have in common as scikit-learn classifiers; and `HeadClassifier`, any of them."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from classify.errors import CallError
from classify.evaluation.temperature import fit_temperature
from classify.heads.registry import HeadSpec, get_head_spec
from classify.training.class_weights import check_sample_weight
from classify.training.train import train
from classify.training.training_set import make_training_set


class BaseHeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
    scorer_ : LinearModel or SklearnModel
        From features to K scores.
    """

    _spec: HeadSpec  # as it was trained

    def _fit_head(
        self,
        spec: HeadSpec,
        X: Any,
        y: Any,
        *,
        param: float | None = None,
        sample_weight: Any = None,
        **options: Any,
    ) -> float | None:
        """Train on arrays.

        Parameters
        ----------
        param : float, optional
            In scikit-learn's terms; chosen from the head's grid if not given.
        options
            Of `classify.training.training_set.make_training_set`.

        Returns
        -------
        float, or None
            The setting, in scikit-learn's terms.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        weights = check_sample_weight(sample_weight, len(y))
        used = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
        self.classes_, numbers = np.unique(y[used], return_inverse=True)
        if len(self.classes_) < 2:
            raise CallError("a classifier needs at least two classes; the data has only one class")
        unit = _get_param_scale(spec, len(self.classes_))
        if param is not None:
            spec = replace(spec, grid=(param / unit,))
        with threadpool_limits(1):
            lesson = make_training_set(
                spec,
                X,
                numbers,
                self.classes_,
                used,
                row_weights=None if weights is None else weights[used],
                **options,
            )
            found = train(spec, lesson)
        self._spec, self.scorer_, choice = spec, found.scorer, found.selected
        self._probabilistic, self.notices_ = found.probabilistic, tuple(found.notices)
        self.temperature_ = None
        self.path_: list[tuple[float | None, float]] = []
        if choice is not None:
            self.temperature_ = fit_temperature(choice.decision_values, lesson.y[found.held_out])
            self.path_ = [(_scale_param(tried, unit), loss) for tried, loss, *_ in choice.path]
        return _scale_param(found.param, unit)

    def _decision_values(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.scorer_.decision_values(validate_data(self, X, dtype=np.float32, reset=False))

    @property
    def _binary_factor(self) -> float:
        """What the difference of two classes' scores is multiplied by to be scikit-learn's one.

        Two vectors that are fitted to targets, or margins, of 1 and -1 are each other's opposite:
        scikit-learn has the one, and their difference is twice as much.
        """
        signs = self._spec.loss in ("hinge", "calibrated")
        return 0.5 if signs and self._spec.solver != "sklearn" else 1.0

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores: float32 (n, K); for two classes (n,), above 0 for the second."""
        scores = self._decision_values(X)
        if len(self.classes_) > 2:
            return scores
        return np.asarray((scores[:, 1] - scores[:, 0]) * np.float32(self._binary_factor))

    def predict(self, X: Any) -> np.ndarray:
        """The best class of each row: (n,)."""
        best = self._decision_values(X).argmax(axis=1)
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
        scores = self._decision_values(X)
        if self.temperature_ is None and not self._probabilistic:
            raise CallError(
                "there are scores but no probabilities: nothing could be held out to calibrate "
                "them with; that takes two rows of a class, in two groups where there are groups"
            )
        found: np.ndarray = softmax(scores.astype(np.float64) / (self.temperature_ or 1), axis=1)
        return found


class HeadClassifier(BaseHeadClassifier):
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
        kind = get_head_spec(self.head)
        found = self._fit_head(
            kind, X, y, class_weight=self.class_weight, cv=self.cv, groups=groups, seed=self.seed
        )
        self.setting_ = _scale_param(found, 1 / _get_param_scale(kind, len(self.classes_)))
        return self


def _get_param_scale(spec: HeadSpec, n_classes: int) -> float:
    """What the setting of scikit-learn is, times ours.

    Of two classes softmax penalises two vectors w and -w, and scikit-learn their difference 2w
    with half its square: twice the penalty, so that its C is twice as large for the same minimum.
    """
    return 2.0 if n_classes == 2 and spec.solver == "lbfgs" and spec.loss == "log" else 1.0


def _scale_param(param: float | None, factor: float) -> float | None:
    return None if param is None else param * factor
