"""The heads, by name, each with its grid; and any scikit-learn classifier, by its own name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

from sklearn.base import BaseEstimator, is_classifier

from classify.errors import UnknownHead

Setting = float | None
ClassWeight = dict[int, float] | None
Builder = Callable[[ClassWeight], Any]


@dataclass(frozen=True)
class Head:
    """A kind of classifier on prepared embeddings.

    Attributes
    ----------
    name : str
    parameter : str, or None
        What is chosen: ``C``, ``alpha``, ``shrinkage``, ``n_neighbors``, or nothing.
    grid : tuple of float
        Its values, from strong to weak regularisation.
    loss : str
        The held-out loss it is chosen by, one of `classify.choice.LOSSES`.
    probabilistic : bool
        Whether the softmax of its scores is its own idea of the probabilities.
    way : str
        How it is trained: ``minimised``, ``kernel`` (on similarities between rows), ``solved`` (in
        closed form), ``neighbours`` (counted) or ``delegated`` (to scikit-learn).
    build : callable, or None
        Of delegated heads: from a class weight to an unfitted scikit-learn classifier.
    weighted : bool
        Whether a class weight makes a difference to it.
    widths : tuple of float
        Of a kernel: values of its ``gamma``, from smooth to fine, as multiples of what scikit-learn
        calls ``scale``. It is chosen together with the parameter.
    """

    name: str
    parameter: str | None
    grid: tuple[Setting, ...]
    loss: str
    probabilistic: bool
    way: str
    build: Builder | None = None
    weighted: bool = True
    widths: tuple[float, ...] = ()

    def settings(self, setting: Setting) -> dict[str, float]:
        """A chosen value under its name."""
        return {} if self.parameter is None or setting is None else {self.parameter: setting}


def _grid(first: int, last: int, digits: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(float(f"{d}e{e}") for e in range(first, last + 1) for d in digits)


ALPHAS = (2e6, 1e6, *_grid(0, 5, (1, 2, 5))[::-1])
HEADS = {
    head.name: head
    for head in (
        Head("softmax", "C", (*_grid(-5, 0, (1, 2, 5)), 10.0, 20.0), "log", True, "minimised"),
        Head("linear-svm", "C", _grid(-6, 0, (1, 3)), "hinge", False, "minimised"),
        Head("rbf-svm", "C", (0.3, 1.0, 3.0, 10.0, 30.0, 100.0), "error", False, "kernel",
             widths=(1 / 16, 1 / 4, 1.0)),
        Head("ridge", "alpha", ALPHAS, "calibrated", False, "solved"),
        Head("lda", "shrinkage", (1, 0.7, *_grid(-3, -1, (1, 2, 5))[::-1]), "log", True, "solved"),
        Head("ncm", None, (None,), "error", False, "solved", weighted=False),
        Head("knn", "n_neighbors", (100, 50, 30, 20, 10, 5, 3, 1), "error", True, "neighbours",
             weighted=False),
    )
}  # fmt: skip
STANDARD = ("softmax", "linear-svm", "ridge", "lda", "ncm")
"""The heads that a comparison tries where none are named: the linear ones."""


def named(name: str) -> Head:
    """The head of that name, or of a scikit-learn classifier given as ``package.module:Class``.

    Raises
    ------
    UnknownHead
        If there is none; the message lists them.
    """
    if name in HEADS:
        return HEADS[name]
    if ":" in name:
        return _foreign(name)
    near = get_close_matches(name, HEADS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownHead(
        f"no head {name!r}, only {', '.join(HEADS)}, and classifiers of scikit-learn's kind as "
        f"package.module:Class{hint}"
    )


def _foreign(name: str) -> Head:
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownHead(f"no classifier {name!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, BaseEstimator) and is_classifier(kind())):
        raise UnknownHead(f"{name} is not a scikit-learn classifier")
    takes = signature(kind).parameters

    def build(weight: ClassWeight) -> Any:
        fixed = {"class_weight": weight, "random_state": 0}
        return kind(**{key: value for key, value in fixed.items() if key in takes})

    probabilistic = hasattr(kind, "predict_proba") and hasattr(kind(), "predict_proba")
    loss = "log" if probabilistic else "error"
    weighted = "class_weight" in takes
    return Head(name, None, (None,), loss, probabilistic, "delegated", build, weighted)
