"""The heads, by name, each with its grid; and any scikit-learn classifier, by its own name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from sklearn.base import BaseEstimator, is_classifier

from classify.errors import UnknownHeadError

Param = float | None
ClassWeight = dict[int, float] | None
EstimatorFactory = Callable[[ClassWeight], Any]


@dataclass(frozen=True)
class HeadSpec:
    """A kind of classifier on prepared embeddings.

    Attributes
    ----------
    name : str
    param_name : str, or None
        What is selected: ``C``, ``alpha``, ``shrinkage``, ``n_neighbors``, or nothing.
    grid : tuple of float
        Its values, from strong to weak regularisation.
    loss : str
        The held-out loss it is selected by, one of `classify.solvers.selection.LOSSES`.
    probabilistic : bool
        Whether the softmax of its scores is its own idea of the probabilities.
    solver : str
        How it is trained, a key of `classify.training.train.SOLVERS`: ``lbfgs``, ``rbf_svm``,
        ``closed_form``, ``neighbours`` or ``sklearn``.
    make_estimator : callable, or None
        Of solver ``sklearn``: makes an unfitted scikit-learn classifier from a class weight.
    uses_class_weight : bool
        Whether a class weight makes a difference to it.
    gamma_factors : tuple of float
        Of an RBF kernel: values of its ``gamma``, from smooth to fine, as multiples of what
        scikit-learn calls ``scale``. It is selected together with the param.
    """

    name: str
    param_name: str | None
    grid: tuple[Param, ...]
    loss: str
    probabilistic: bool
    solver: str
    make_estimator: EstimatorFactory | None = None
    uses_class_weight: bool = True
    gamma_factors: tuple[float, ...] = ()

    @property
    def uses_gram(self) -> bool:
        """Whether its solver starts from Gram statistics of the features."""
        return self.solver in ("lbfgs", "closed_form")

    @property
    def weights_gram(self) -> bool:
        """Whether class weights enter those statistics.

        Of other heads they shift the bias of softmax and hinge, or the priors of LDA.
        """
        return self.name == "ridge"

    def as_params(self, param: Param) -> dict[str, float]:
        """A chosen value under its name."""
        return {} if self.param_name is None or param is None else {self.param_name: param}


def _make_grid(first: int, last: int, digits: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(f"{d}e{e}") for e in range(first, last + 1) for d in digits)


RIDGE_ALPHAS = (2e6, 1e6, *_make_grid(0, 5, (1, 2, 5))[::-1])
LDA_SHRINKAGES = (1, 0.7, *_make_grid(-3, -1, (1, 2, 5))[::-1])
HEADS = {
    head.name: head
    for head in (
        HeadSpec("softmax", "C", (*_make_grid(-5, 0, (1, 2, 5)), 10.0, 20.0), "log", True, "lbfgs"),
        HeadSpec("linear-svm", "C", _make_grid(-6, 0, (1, 3)), "hinge", False, "lbfgs"),
        HeadSpec("rbf-svm", "C", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "error", False, "rbf_svm",
             gamma_factors=(1 / 16, 1 / 4, 1.0)),
        HeadSpec("ridge", "alpha", RIDGE_ALPHAS, "calibrated", False, "closed_form"),
        HeadSpec("lda", "shrinkage", LDA_SHRINKAGES, "log", True, "closed_form"),
        HeadSpec("ncm", None, (None,), "error", False, "closed_form", uses_class_weight=False),
        HeadSpec("knn", "n_neighbors", (100, 50, 30, 20, 10, 5, 3, 1), "error", True, "neighbours",
             uses_class_weight=False),
    )
}  # fmt: skip
DEFAULT_HEADS = ("softmax", "linear-svm", "ridge", "lda", "ncm")
"""The heads that a comparison tries where none are named: the linear ones."""


def get_head_spec(name: str) -> HeadSpec:
    """The head of that name, or of a scikit-learn classifier given as ``package.module:Class``.

    Raises
    ------
    UnknownHead
        If there is none; the message lists them.
    """
    if name in HEADS:
        return HEADS[name]
    if ":" in name:
        return _make_sklearn_spec(name)
    near = get_close_matches(name, HEADS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownHeadError(
        f"no head {name!r}, only {', '.join(HEADS)}, and classifiers of scikit-learn's kind as "
        f"package.module:Class{hint}"
    )


def _make_sklearn_spec(name: str) -> HeadSpec:
    try:
        kind = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownHeadError(f"no classifier {name!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator) and is_classifier(kind())):
        raise UnknownHeadError(f"{name} is not a scikit-learn classifier")
    takes = signature(kind).parameters

    def build(weight: ClassWeight) -> Any:
        fixed = {"class_weight": weight, "random_state": 0}
        return kind(**{key: value for key, value in fixed.items() if key in takes})

    probabilistic = hasattr(kind, "predict_proba") and hasattr(kind(), "predict_proba")
    loss = "log" if probabilistic else "error"
    weighted = "class_weight" in takes
    return HeadSpec(name, None, (None,), loss, probabilistic, "sklearn", build, weighted)
