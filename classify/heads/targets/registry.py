"""The heads for several labels, numbers and grades by name; and estimators of scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from sklearn.base import BaseEstimator, is_classifier, is_regressor

from classify.errors import CallError, UnknownHeadError
from classify.heads.registry import HEADS, RIDGE_ALPHAS, get_head_spec
from classify.kinds import GRADE, MULTI, NUMBER
from featurize.text import did_you_mean

ORDINAL, RIDGE, KERNEL_RIDGE, KNN = "ordinal", "ridge", "kernel-ridge", "knn"
LOGISTIC, LINEAR_SVM = "softmax", "linear-svm"
HEADS_OF = {
    MULTI: (LOGISTIC, LINEAR_SVM, RIDGE, KERNEL_RIDGE, KNN),
    NUMBER: (RIDGE, KERNEL_RIDGE, KNN),
    GRADE: (ORDINAL, "softmax", "softmax-lda", "linear-svm", "lda", RIDGE, KERNEL_RIDGE, KNN),
}
"""The heads of each kind of labels."""
DEFAULT_HEADS_OF = {
    MULTI: (LOGISTIC,),
    NUMBER: (RIDGE,),
    GRADE: (ORDINAL, "softmax-lda", RIDGE),
}
"""The heads that `classify.fit` tries; the one that validates best is kept."""
COMPARED_HEADS_OF = {
    MULTI: (LOGISTIC, LINEAR_SVM, RIDGE),
    NUMBER: (RIDGE, KNN),
    GRADE: (ORDINAL, "softmax", "lda", RIDGE),
}
"""The heads that `classify.compare` compares by default."""
LAYER_HEAD = RIDGE
"""The head, in closed form, that chooses the layers for all others in `classify.fit`."""


@dataclass(frozen=True)
class TargetHeadSpec:
    """A kind of head for labels that are not one class.

    Attributes
    ----------
    name : str
        Name of the head, or the import path of an estimator of scikit-learn.
    kind : str
        ``multi``, ``number`` or ``grade``.
    param_name : str, or None
        Name of the param that is selected by validation.
    grid : tuple of float
        Its values, from strong to weak regularisation.
    estimator_class : type, or None
        The estimator, where the name is an import path.
    """

    name: str
    kind: str
    param_name: str | None = None
    grid: tuple[float, ...] = ()
    estimator_class: type | None = None

    @property
    def predicts_classes(self) -> bool:
        """Whether grades are learnt as plain classes, without their order."""
        if self.kind != GRADE:
            return False
        if self.estimator_class is not None:
            return bool(is_classifier(self.estimator_class()))
        return self.name not in (ORDINAL, RIDGE, KERNEL_RIDGE, KNN)

    @property
    def uses_gram(self) -> bool:
        """Whether its solver starts from the principal bases of the features."""
        return self.name in (LOGISTIC, LINEAR_SVM, RIDGE, ORDINAL)

    def make_estimator(self) -> Any:
        """Make the unfitted estimator of a head that is an import path.

        Returns
        -------
        estimator
            With ``random_state=0``, where it takes one.
        """
        if self.estimator_class is None:
            raise CallError(f"{self.name} is no estimator of scikit-learn")
        has_seed = "random_state" in signature(self.estimator_class).parameters
        return self.estimator_class(**({"random_state": 0} if has_seed else {}))


def get_target_head_spec(name: str, kind: str) -> TargetHeadSpec:
    """Look up a head for a kind of labels by name.

    Parameters
    ----------
    name : str
        One of `HEADS_OF`, or an estimator of scikit-learn as ``package.module:Class``.
    kind : str
        ``multi``, ``number`` or ``grade``.

    Returns
    -------
    TargetHeadSpec

    Raises
    ------
    UnknownHeadError
        If there is no such head for this kind; the message lists the names.
    """
    if ":" in name:
        return TargetHeadSpec(name, kind, estimator_class=_import_estimator(name, kind))
    if name not in HEADS_OF[kind]:
        what = "of classes" if name in HEADS else "that is known"
        raise UnknownHeadError(
            f"{name!r} is no head for the kind {kind}, only {', '.join(HEADS_OF[kind])}, and "
            f"estimators of scikit-learn as package.module:Class"
            f"{did_you_mean(name, HEADS_OF[kind]) if what != 'of classes' else ''}"
        )
    grids = {
        RIDGE: ("alpha", RIDGE_ALPHAS),
        KERNEL_RIDGE: ("alpha", KERNEL_ALPHAS),
        ORDINAL: ("C", HEADS["softmax"].grid),
        LOGISTIC: ("C", (*HEADS["softmax"].grid, 50.0, 100.0, 200.0, 500.0, 1000.0)),
        LINEAR_SVM: ("C", (*HEADS["linear-svm"].grid, 10.0, 30.0, 100.0)),
        KNN: ("n_neighbors", HEADS["knn"].grid),
    }
    param_name, grid = grids.get(name, (None, ()))
    return TargetHeadSpec(name, kind, param_name, tuple(float(value or 0) for value in grid))


def check_head_names(names: Sequence[str]) -> None:
    """Refuse names that no kind of labels has a head of, before anything is read.

    Parameters
    ----------
    names : sequence of str
        Import paths are not looked at.

    Raises
    ------
    UnknownHeadError
        If there is no such head; the message lists the names.
    """
    known = {name for heads in HEADS_OF.values() for name in heads}
    for name in names:
        if ":" not in name and name not in known:
            get_head_spec(name)


KERNEL_ALPHAS = tuple(float(f"{d}e{e}") for e in range(2, -5, -1) for d in (3, 1))
GAMMA_FACTORS = (1 / 16, 1 / 4, 1.0)
"""Values of gamma of `kernel-ridge`, as multiples of scikit-learn's ``scale``."""


def _import_estimator(name: str, kind: str) -> type:
    try:
        estimator_class = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownHeadError(f"no estimator {name!r}: {error}") from error
    if not (isinstance(estimator_class, type) and issubclass(estimator_class, BaseEstimator)):
        raise UnknownHeadError(f"{name} is no estimator of scikit-learn's kind")
    try:
        estimator = estimator_class()
    except TypeError as error:
        raise UnknownHeadError(f"{name} cannot be made without arguments: {error}") from error
    if kind == MULTI and not is_classifier(estimator):
        raise UnknownHeadError(f"{name} is no classifier, which several labels need")
    if kind == NUMBER and not is_regressor(estimator):
        raise UnknownHeadError(f"{name} is no regressor, which numbers need")
    if kind == GRADE and not (is_classifier(estimator) or is_regressor(estimator)):
        raise UnknownHeadError(f"{name} is neither classifier nor regressor")
    return estimator_class
