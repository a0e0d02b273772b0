"""The linear heads as scikit-learn classifiers, each with its parameters named.

All of them standardise the features by training statistics, weighted as the rows are, and their
setting means what it means in scikit-learn on standardised features. Coefficients are on the
features as they are given.
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
    """A linear head whose setting is ``cv`` or a number."""

    kind: ClassVar[str]
    most: ClassVar[float] = np.inf  # the setting is above 0, and no more than this

    def __init__(
        self, *, cv: Any = None, class_weight: Any = None, random_state: Any = None
    ) -> None:
        self.cv = cv
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Choose the setting, unless it is given, and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,)
            Labels of any kind.
        sample_weight : array of shape (n,), optional
            A row of weight three counts as three such rows, where held out as well; one of weight
            0 as none.
        groups : array of shape (n,), optional
            Rows of one group are never on both sides of a fold; handed to `cv` where that is a
            splitter. A search hands them on after ``set_fit_request(groups=True)``.

        Raises
        ------
        ValueError
            If an option, a weight or the data is wrong; the message says which.
        """
        head = HEADS[self.kind]
        found = self._fit_head(
            head,
            X,
            y,
            param=self._check_param(head.param_name),
            sample_weight=sample_weight,
            class_weight=self.class_weight,
            cv=self.cv,
            groups=groups,
            seed=_resolve_seed(self.random_state),
        )
        if head.param_name is not None:
            setattr(self, f"{head.param_name}_", found)
        self.coef_, self.intercept_ = self._unscale_coef()
        return self

    def _check_param(self, name: str | None) -> float | None:
        given = "cv" if name is None else getattr(self, name)
        if isinstance(given, str) and given == "cv":
            return None
        known = isinstance(given, int | float | np.number) and not isinstance(given, bool)
        number = float(given) if known else np.nan
        if not (0 < number < np.inf and number <= self.most):
            most = "" if np.isinf(self.most) else f", at most {self.most:g}"
            raise CallError(f"{name} is 'cv' or a number above 0{most}, not {given!r}")
        return number

    def _unscale_coef(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercept on features as they are given; of two classes, one row."""
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

    What ``LogisticRegression`` minimises: ``|W|^2 / 2 + C sum of log losses``, the intercept free.

    Parameters
    ----------
    C : "cv" or float
        Chosen by held-out log loss, or given. The same as of scikit-learn's ``LogisticRegression``
        on standardised features, for two classes too.
    cv : None, int, splitter or iterable
        Folds that C is chosen by, and the probabilities calibrated: five stratified ones if not
        given. Rows that are the same are never torn apart by folds that are drawn.
    class_weight : None, "balanced" or dict
        As in scikit-learn.
    random_state : None, int or RandomState
        Decides the folds that are drawn; None is 0.

    Attributes
    ----------
    C_ : float
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        On the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
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
    """Linear support vectors with the squared hinge, each class against the rest.

    What ``LinearSVC`` minimises for each class, ``|w|^2 / 2 + C sum of squared hinges``, except
    that the intercept is not penalised.

    Parameters
    ----------
    C : "cv" or float
        Chosen by held-out squared hinge, or given. The same as of scikit-learn's ``LinearSVC`` on
        standardised features.
    cv, class_weight, random_state
        As in `SoftmaxClassifier`.

    Attributes
    ----------
    C_ : float
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        On the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
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
    alpha : "cv" or float
        Chosen by the log loss of scaled held-out scores, or given. The same as of scikit-learn's
        ``RidgeClassifier`` on standardised features.
    cv, random_state
        As in `SoftmaxClassifier`.
    class_weight : None, "balanced" or dict
        The features are standardised with it too.

    Attributes
    ----------
    alpha_ : float
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        On the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
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
    """Linear discriminants with a shrunk covariance of standardised features, in closed form.

    Friedman (1989), "Regularized discriminant analysis", JASA 84.

    Parameters
    ----------
    shrinkage : "cv" or float
        Chosen by held-out log loss, or given: above 0, at most 1. The same as of scikit-learn's
        ``LinearDiscriminantAnalysis(solver="lsqr")`` on standardised features.
    cv, random_state
        As in `SoftmaxClassifier`.
    class_weight : None, "balanced" or dict
        Multiplies the priors; ``balanced`` makes all classes equally likely. The covariance is
        pooled by counts all the same.

    Attributes
    ----------
    shrinkage_ : float
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        On the features as given.
    intercept_ : float64 array of shape (K,) or (1,)
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
    """The class whose mean is nearest, on standardised features: scikit-learn's `NearestCentroid`.

    It has nothing to choose, and classes have no weights: their sizes play no part.

    Parameters
    ----------
    cv, random_state
        As in `SoftmaxClassifier`; for the probabilities alone.

    Attributes
    ----------
    coef_ : float64 array of shape (K, D), or (1, D) for two classes
        On the features as given: the scores are those of squared distances, halved.
    intercept_ : float64 array of shape (K,) or (1,)
    """

    kind = "ncm"

    def __init__(self, *, cv: Any = None, random_state: Any = None) -> None:
        super().__init__(cv=cv, random_state=random_state)
