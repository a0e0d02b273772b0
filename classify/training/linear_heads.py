"""The linear heads as scikit-learn classifiers, each with its param in the constructor.

All of them standardise the features by weighted statistics of the training rows. Their params mean
the same as in scikit-learn on standardised features. Coefficients are those of the features as
given.
"""

from numbers import Integral
from typing import Any, ClassVar, Self, cast

import numpy as np
from sklearn.utils import check_random_state

from classify.errors import CallError
from classify.heads.models import LinearModel
from classify.heads.registry import HEADS
from classify.training.estimators import BaseHeadClassifier


class BaseLinearClassifier(BaseHeadClassifier):
    """Base class of linear heads, whose param is ``cv`` or a number.

    Parameters
    ----------
    cv, class_weight, random_state
        As in `SoftmaxClassifier`.

    Attributes
    ----------
    kind : str
        Name of the head in `classify.heads.registry.HEADS`.
    most : float
        Largest value of the param.
    """

    kind: ClassVar[str]
    most: ClassVar[float] = np.inf  # the param is above 0 and at most this

    def __init__(
        self, *, cv: Any = None, class_weight: Any = None, random_state: Any = None
    ) -> None:
        self.cv = cv
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Select the param, unless it is given, and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.
        sample_weight : array of shape (n,), optional
            A row of weight 3 counts as three rows, in training and in validation; a row of weight 0
            is left out. 1 if not given.
        groups : array of shape (n,), optional
            Rows of one group are never on both sides of a fold. Passed to `cv` if that is a
            splitter. A search passes them after ``set_fit_request(groups=True)``.

        Returns
        -------
        self
            The fitted classifier.

        Raises
        ------
        ValueError
            If an option, a weight or the data is wrong; the message says which.
        """
        spec = HEADS[self.kind]
        param = self._fit_head(
            spec,
            X,
            y,
            param=self._check_param(spec.param_name),
            sample_weight=sample_weight,
            class_weight=self.class_weight,
            cv=self.cv,
            groups=groups,
            seed=_resolve_seed(self.random_state),
        )
        if spec.param_name is not None:
            setattr(self, f"{spec.param_name}_", param)
        self.coef_, self.intercept_ = self._unscale_coef()
        return self

    def _check_param(self, name: str | None) -> float | None:
        value = "cv" if name is None else getattr(self, name)
        if isinstance(value, str) and value == "cv":
            return None
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        number = float(value) if is_number else np.nan
        if not (0 < number < np.inf and number <= self.most):
            most = "" if np.isinf(self.most) else f", at most {self.most:g}"
            raise CallError(f"{name} is 'cv' or a number above 0{most}, not {value!r}")
        return number

    def _unscale_coef(self) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients and intercept of unscaled features; one row for two classes."""
        linear = cast(LinearModel, self.scorer_)
        coef = linear.coef / linear.scale
        intercept = linear.intercept - coef @ linear.mean
        if len(self.classes_) > 2:
            return coef, intercept
        return (coef[1:] - coef[:1]) * self._binary_factor, (
            intercept[1:] - intercept[:1]
        ) * self._binary_factor


def _resolve_seed(state: Any) -> int:
    if state is None or isinstance(state, Integral):
        return int(state or 0)
    return int(check_random_state(state).randint(2**31 - 1))


class SoftmaxClassifier(BaseLinearClassifier):
    """Multinomial logistic regression on standardised features.

    It minimises the objective of ``LogisticRegression``, ``|W|^2 / 2 + C sum of log losses``,
    without a penalty of the intercept.

    Parameters
    ----------
    C : "cv" or float, default "cv"
        Inverse strength of the penalty, as in scikit-learn's ``LogisticRegression`` on standardised
        features, for two classes too. ``cv`` selects it by held-out log loss.
    cv : None, int, splitter or iterable
        Folds for selection of C and calibration of probabilities; None is five stratified folds.
        Folds drawn here keep identical rows together.
    class_weight : None, "balanced" or dict
        As in scikit-learn.
    random_state : None, int or RandomState
        Seed of the folds drawn here; None is 0.

    Attributes
    ----------
    C_ : float
        The selected or given C.
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        Coefficients of the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
        Constant of each class.
    """

    kind = "softmax"

    def __init__(
        self,
        C: Any = "cv",
        *,
        cv: Any = None,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(cv=cv, class_weight=class_weight, random_state=random_state)
        self.C = C


class LinearSVMClassifier(BaseLinearClassifier):
    """Linear one-versus-rest SVM with the squared hinge loss, on standardised features.

    It minimises the objective of ``LinearSVC`` for each class, ``|w|^2 / 2 + C sum of squared
    hinges``, but without a penalty of the intercept.

    Parameters
    ----------
    C : "cv" or float, default "cv"
        Inverse strength of the penalty, as in scikit-learn's ``LinearSVC`` on standardised
        features. ``cv`` selects it by held-out squared hinge.
    cv, class_weight, random_state
        As in `SoftmaxClassifier`.

    Attributes
    ----------
    C_ : float
        The selected or given C.
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        Coefficients of the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
        Constant of each class.
    """

    kind = "linear-svm"

    def __init__(
        self,
        C: Any = "cv",
        *,
        cv: Any = None,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(cv=cv, class_weight=class_weight, random_state=random_state)
        self.C = C


class RidgeHeadClassifier(BaseLinearClassifier):
    """Least squares to targets of 1 and -1 on standardised features, in closed form.

    Parameters
    ----------
    alpha : "cv" or float, default "cv"
        Strength of the penalty, as in scikit-learn's ``RidgeClassifier`` on standardised features.
        ``cv`` selects it by the log loss of temperature-scaled held-out decision values.
    cv, random_state
        As in `SoftmaxClassifier`.
    class_weight : None, "balanced" or dict
        As in scikit-learn. It also weighs the statistics of the standardisation.

    Attributes
    ----------
    alpha_ : float
        The selected or given alpha.
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        Coefficients of the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
        Constant of each class.
    """

    kind = "ridge"

    def __init__(
        self,
        alpha: Any = "cv",
        *,
        cv: Any = None,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(cv=cv, class_weight=class_weight, random_state=random_state)
        self.alpha = alpha


class ShrunkLDAClassifier(BaseLinearClassifier):
    """Linear discriminant analysis with a shrunk covariance, on standardised features.

    Friedman (1989), "Regularized discriminant analysis", JASA 84.

    Parameters
    ----------
    shrinkage : "cv" or float, default "cv"
        Above 0, at most 1; as in scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr")`` on
        standardised features. ``cv`` selects it by the log loss of temperature-scaled held-out
        decision values.
    cv, random_state
        As in `SoftmaxClassifier`.
    class_weight : None, "balanced" or dict
        Multiplies the priors; ``balanced`` makes all classes equally likely. The pooled covariance
        does not change.

    Attributes
    ----------
    shrinkage_ : float
        The selected or given shrinkage.
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        Coefficients of the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
        Constant of each class.
    """

    kind = "lda"
    most = 1.0

    def __init__(
        self,
        shrinkage: Any = "cv",
        *,
        cv: Any = None,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(cv=cv, class_weight=class_weight, random_state=random_state)
        self.shrinkage = shrinkage


class NearestMeanClassifier(BaseLinearClassifier):
    """Nearest class mean on standardised features, as scikit-learn's `NearestCentroid`.

    It has no param and takes no class weights; sizes of classes do not matter.

    Parameters
    ----------
    cv, random_state
        As in `SoftmaxClassifier`; used for calibration of probabilities only.

    Attributes
    ----------
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        Coefficients of the features as given. Decision values differ from minus half the squared
        distances by a constant in each row.
    intercept_ : float64 array of shape (K,) or (1,)
        Constant of each class.
    """

    kind = "ncm"

    def __init__(self, *, cv: Any = None, random_state: Any = None) -> None:
        super().__init__(cv=cv, random_state=random_state)
