"""The heads by name, each with its grid; and any scikit-learn classifier by its import path."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from sklearn.base import BaseEstimator, is_classifier

from classify.errors import UnknownHeadError
from featurize.text import did_you_mean

Param = float | None
ClassWeight = dict[int, float] | None
EstimatorFactory = Callable[[ClassWeight], Any]


@dataclass(frozen=True)
class HeadSpec:
    """A kind of classifier on prepared embeddings.

    Attributes
    ----------
    name : str
        Name of the head, or the import path of a scikit-learn classifier.
    param_name : str, or None
        Name of the selected param: ``C``, ``alpha``, ``shrinkage``, ``n_neighbors``; None for a
        head without one.
    grid : tuple of float
        Values of the param, from strong to weak regularisation.
    loss : str
        Held-out loss that the param is selected by, a key of `classify.solvers.selection.LOSSES`.
    probabilistic : bool
        Whether the softmax of the decision values gives the model's own probabilities.
    solver : str
        Solver, a key of `classify.training.train.SOLVERS`: ``lbfgs``, ``rbf_svm``,
        ``closed_form``, ``neighbours``, ``averaged`` or ``sklearn``.
    make_estimator : callable, or None
        For solver ``sklearn``: makes an unfitted scikit-learn classifier from a class weight.
    uses_class_weight : bool
        Whether class weights change the trained head.
    gamma_factors : tuple of float
        For an RBF kernel: values of ``gamma``, from smooth to fine, as multiples of scikit-learn's
        ``scale``. It is selected together with the param.
    members : tuple of str
        For solver ``averaged``: the linear heads whose average it is, each with a param of its own.
    layer_head : str
        Name of a faster head that selects the layers for it in `classify.fit`; empty for none.
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
    members: tuple[str, ...] = ()
    layer_head: str = ""

    @property
    def uses_gram(self) -> bool:
        """Whether its solver starts from Gram statistics of the features."""
        return self.solver in ("lbfgs", "closed_form", "averaged")

    @property
    def uses_lbfgs(self) -> bool:
        """Whether it is a linear head that L-BFGS finds, or an average with such a head."""
        return self.solver in ("lbfgs", "averaged")

    @property
    def weights_gram(self) -> bool:
        """Whether class weights enter those statistics.

        In other heads they shift the bias of softmax and hinge, or the priors of LDA.
        """
        return self.name == "ridge"

    def as_params(self, param: Param) -> dict[str, float]:
        """Return a selected value under its name.

        Parameters
        ----------
        param : float, or None
            A value of the param.

        Returns
        -------
        dict of str to float
            Empty for a head without a param.
        """
        return {} if self.param_name is None or param is None else {self.param_name: param}


def _make_grid(first: int, last: int, digits: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(f"{d}e{e}") for e in range(first, last + 1) for d in digits)


RIDGE_ALPHAS = (2e6, 1e6, *_make_grid(0, 5, (1, 2, 5))[::-1])
LDA_SHRINKAGES = (1, 0.97, 0.9, 0.7, *_make_grid(-3, -1, (1, 2, 5))[::-1])
HEADS = {
    head.name: head
    for head in (
        HeadSpec("softmax", "C", (*_make_grid(-5, 0, (1, 2, 5)), 10.0, 20.0), "log", True, "lbfgs"),
        HeadSpec("softmax-lda", None, (None,), "log", True, "averaged",
                 members=("softmax", "lda"), layer_head="lda"),
        HeadSpec("linear-svm", "C", _make_grid(-6, 0, (1, 3)), "hinge", False, "lbfgs"),
        HeadSpec("rbf-svm", "C", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "error", False, "rbf_svm",
             gamma_factors=(1 / 16, 1 / 4, 1.0)),
        HeadSpec("ridge", "alpha", RIDGE_ALPHAS, "calibrated", False, "closed_form"),
        HeadSpec("lda", "shrinkage", LDA_SHRINKAGES, "calibrated", True, "closed_form"),
        HeadSpec("ncm", None, (None,), "error", False, "closed_form", uses_class_weight=False),
        HeadSpec("knn", "n_neighbors", (100, 50, 30, 20, 10, 5, 3, 1), "error", True, "neighbours",
             uses_class_weight=False),
    )
}  # fmt: skip
DEFAULT_HEAD = "softmax-lda"
"""The head that `classify.fit` trains by default."""
DEFAULT_HEADS = ("softmax", "linear-svm", "ridge", "lda", "ncm")
"""The heads of a comparison by default: the linear ones."""


def get_head_spec(name: str) -> HeadSpec:
    """Look up a head by name.

    Parameters
    ----------
    name : str
        A key of `HEADS`, or a scikit-learn classifier as ``package.module:Class``.

    Returns
    -------
    HeadSpec
        The kind of head.

    Raises
    ------
    UnknownHeadError
        If there is no such head; the message lists the names.
    """
    if name in HEADS:
        return HEADS[name]
    if ":" in name:
        return _make_sklearn_spec(name)
    raise UnknownHeadError(
        f"no head {name!r}, only {', '.join(HEADS)}, and classifiers of scikit-learn's kind as "
        f"package.module:Class{did_you_mean(name, HEADS)}"
    )


def _make_sklearn_spec(name: str) -> HeadSpec:
    try:
        estimator_class = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownHeadError(f"no classifier {name!r}: {error}") from error
    if not (
        isinstance(estimator_class, type)
        and issubclass(estimator_class, BaseEstimator)
        and is_classifier(estimator_class())
    ):
        raise UnknownHeadError(f"{name} is not a scikit-learn classifier")
    parameters = signature(estimator_class).parameters

    def make_estimator(weight: ClassWeight) -> Any:
        arguments = {"class_weight": weight, "random_state": 0}
        return estimator_class(
            **{key: value for key, value in arguments.items() if key in parameters}
        )

    probabilistic = hasattr(estimator_class, "predict_proba") and hasattr(
        estimator_class(), "predict_proba"
    )
    loss = "log" if probabilistic else "error"
    uses_class_weight = "class_weight" in parameters
    return HeadSpec(
        name, None, (None,), loss, probabilistic, "sklearn", make_estimator, uses_class_weight
    )
