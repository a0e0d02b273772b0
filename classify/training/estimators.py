"""The base class of heads as scikit-learn classifiers, and `HeadClassifier`, a head by name."""

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
    """Base class of heads on features, with a param that is given or selected by validation.

    Attributes
    ----------
    classes_ : array of shape (K,)
        Classes of the rows with a weight above 0.
    n_features_in_ : int
        Number of features D.
    path_ : list of (param, mean held-out loss)
        Params that were tried, from strong to weak regularisation; one pair if the param was given,
        none if nothing could be held out.
    temperature_ : float, or None
        Divisor of the decision values for calibrated probabilities; None if nothing could be held
        out.
    notices_ : tuple of str
        Messages for the user about this fit, such as a solver that did not converge or a param at
        the end of its grid.
    scorer_ : LinearModel or SklearnModel
        The model, from features to K decision values.
    """

    _spec: HeadSpec  # of the last fit

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
        spec : HeadSpec
            The kind of head.
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.
        param : float, optional
            In scikit-learn's scale; selected from the head's grid if not given.
        sample_weight : array of shape (n,), optional
            Weight of each row; 1 if not given.
        **options
            Options of `classify.training.training_set.make_training_set`.

        Returns
        -------
        float, or None
            The param in scikit-learn's scale.

        Raises
        ------
        CallError
            If there are fewer than two classes, or an option or a weight is wrong.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        weights = check_sample_weight(sample_weight, len(y))
        used = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
        self.classes_, class_numbers = np.unique(y[used], return_inverse=True)
        if len(self.classes_) < 2:
            raise CallError("a classifier needs at least two classes; the data has only one class")
        param_scale = _get_param_scale(spec, len(self.classes_))
        if param is not None:
            spec = replace(spec, grid=(param / param_scale,))
        with threadpool_limits(1):
            training_set = make_training_set(
                spec,
                X,
                class_numbers,
                self.classes_,
                used,
                row_weights=None if weights is None else weights[used],
                **options,
            )
            result = train(spec, training_set)
        self._spec, self.scorer_, selected = spec, result.scorer, result.selected
        self._probabilistic, self.notices_ = result.probabilistic, tuple(result.notices)
        self.temperature_ = None
        self.path_: list[tuple[float | None, float]] = []
        if selected is not None:
            self.temperature_ = fit_temperature(
                selected.decision_values, training_set.y[result.held_out]
            )
            self.path_ = [
                (_scale_param(path_param, param_scale), loss)
                for path_param, loss, *_ in selected.path
            ]
        return _scale_param(result.param, param_scale)

    def _decision_values(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.scorer_.decision_values(validate_data(self, X, dtype=np.float32, reset=False))

    @property
    def _binary_factor(self) -> float:
        """Factor from the difference of two classes' decision values to scikit-learn's single one.

        Two weight vectors fitted to targets, or margins, of 1 and -1 are opposite. scikit-learn has
        one of them, and their difference is twice as large.
        """
        has_signed_targets = self._spec.name in ("linear-svm", "ridge")
        return 0.5 if has_signed_targets else 1.0

    def decision_function(self, X: Any) -> np.ndarray:
        """Compute decision values in scikit-learn's shape.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.

        Returns
        -------
        float32 array of shape (n, K), or (n,) for two classes
            For two classes, above 0 for the second.
        """
        values = self._decision_values(X)
        if len(self.classes_) > 2:
            return values
        return np.asarray((values[:, 1] - values[:, 0]) * np.float32(self._binary_factor))

    def predict(self, X: Any) -> np.ndarray:
        """Predict the class of each row.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.

        Returns
        -------
        array of shape (n,)
            Entries of `classes_`.
        """
        best = self._decision_values(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def predict_proba(self, X: Any) -> np.ndarray:
        """Compute class probabilities, calibrated by temperature scaling.

        Guo et al. (2017), "On Calibration of Modern Neural Networks", ICML. The temperature is
        fitted on the held-out decision values of all folds, whether the param was selected by them
        or given. If nothing could be held out, softmax and LDA give the probabilities of their
        model.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.

        Returns
        -------
        float64 array of shape (n, K)
            Each row sums to 1.

        Raises
        ------
        CallError
            If nothing could be held out, and the model has no probabilities of its own.
        """
        values = self._decision_values(X)
        if self.temperature_ is None and not self._probabilistic:
            raise CallError(
                "there are scores but no probabilities: nothing could be held out to calibrate "
                "them with; that takes two rows of a class, in two groups where there are groups"
            )
        proba: np.ndarray = softmax(values.astype(np.float64) / (self.temperature_ or 1), axis=1)
        return proba


class HeadClassifier(BaseHeadClassifier):
    """A head by its name, with its param selected by validation.

    The linear heads also have classes of their own, with their params in the constructor:
    `SoftmaxClassifier`, `LinearSVMClassifier`, `RidgeHeadClassifier`, `ShrunkLDAClassifier`,
    `NearestMeanClassifier`.

    Parameters
    ----------
    head : str, default "softmax"
        Name of the head, as in `classify.fit`.
    cv : None, int, splitter or iterable
        Folds for selection of the param and calibration of probabilities; None is five stratified
        folds.
    class_weight : None, "balanced" or dict
        As in scikit-learn. ``ncm`` and ``knn`` do not use it.
    seed : int, default 0
        Seed of the folds.

    Attributes
    ----------
    setting_ : float, or None
        The selected param, as in a result of `classify.fit`: C of softmax with two classes is half
        that of `SoftmaxClassifier`. None for ``softmax-lda``, which has two.

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
        """Select the param and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.
        groups : array of shape (n,), optional
            Rows of one group are never on both sides of a fold.

        Returns
        -------
        self
            The fitted classifier.

        Raises
        ------
        UnknownHeadError
            If there is no such head.
        ValueError
            If an option or the data is wrong; the message says which.
        """
        spec = get_head_spec(self.head)
        param = self._fit_head(
            spec, X, y, class_weight=self.class_weight, cv=self.cv, groups=groups, seed=self.seed
        )
        self.setting_ = _scale_param(param, 1 / _get_param_scale(spec, len(self.classes_)))
        return self


def _get_param_scale(spec: HeadSpec, n_classes: int) -> float:
    """Return the factor from a head's param to scikit-learn's.

    For two classes, softmax penalises two vectors w and -w, and scikit-learn their difference 2w
    with half its square: twice the penalty. So its C is twice as large for the same minimum.
    """
    return 2.0 if n_classes == 2 and spec.solver == "lbfgs" and spec.loss == "log" else 1.0


def _scale_param(param: float | None, factor: float) -> float | None:
    return None if param is None else param * factor
