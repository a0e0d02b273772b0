"""A trained linear head: a few arrays, and where they come from. numpy is all it needs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from classify.errors import CallError, HeadMismatch
from featurize.cache import FeatureCache


@dataclass(frozen=True)
class HeadLayer:
    """A layer that a head reads, as its cache described it."""

    name: str
    layer: str
    pool: str
    dtype: str
    dim: int
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """What made the features that a head was trained on."""

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Mapping[str, Any]
    precision: str
    layers: tuple[HeadLayer, ...]

    @classmethod
    def of(cls, cache: FeatureCache, layers: tuple[str, ...]) -> "Source":
        """Take it down from a cache."""
        made, infos = cache.extractor, [cache.layer(name) for name in layers]
        return cls(
            backbone=made.backbone,
            weights=made.weights,
            weights_sha256=made.weights_sha256,
            preprocess=made.preprocess,
            precision=made.precision,
            layers=tuple(
                HeadLayer(i.name, i.layer, i.pool, i.dtype, i.dim, i.fingerprint) for i in infos
            ),
        )


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A linear classifier on standardised features.

    Attributes
    ----------
    head : str
        Its kind: ``softmax``, ``linear-svm``.
    classes : list of str
        Names of the classes, in the order of the scores. K of them.
    mean, scale : float arrays of shape (D,)
        Standardisation, by training statistics.
    coef : float array of shape (K, D), or (1, D) for two classes
    intercept : float array of shape (K,), or (1,) for two classes
    C : float
        The chosen inverse strength of regularisation.
    task : str
    source : Source
        The backbone, and the layers whose features are joined to D columns.
    record : dict
        How it scored; the keys of a `Record`.
    notices : tuple of str
        What a user should know about this fit. Not saved.
    """

    head: str
    classes: list[str]
    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    C: float
    task: str
    source: Source
    record: Mapping[str, Any]
    notices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        layers = "+".join(layer.name for layer in self.source.layers)
        return f"FittedHead({self.head} on {layers}, {len(self.classes)} classes, C={self.C:g})"

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Scores: the distance from each class's hyperplane, unscaled.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; taken as float32.

        Returns
        -------
        float array of shape (n, K), or (n,) for two classes
            As scikit-learn's: of two classes, the second one's.

        Raises
        ------
        CallError
            If `X` is of another shape.
        """
        scaled = np.array(X, np.float32)
        if scaled.ndim != 2 or scaled.shape[1] != len(self.mean):
            raise CallError(
                f"this head takes features of shape (n, {len(self.mean)}), not {scaled.shape}"
            )
        # In place and in this order, as StandardScaler does, so that the numbers agree.
        scaled -= self.mean
        scaled /= self.scale
        scores: np.ndarray = scaled @ self.coef.T + self.intercept
        return scores[:, 0] if len(self.classes) == 2 else scores

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The best class's name for each row: text array of shape (n,)."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        names: np.ndarray = np.array(self.classes)[best]
        return names

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of the classes: float array of shape (n, K), each row's sum is 1.

        Raises
        ------
        CallError
            If the head is no softmax: the scores of others are not probabilities.
        """
        if self.head != "softmax":
            raise CallError(f"a {self.head} head has scores but no probabilities; use softmax")
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        odds: np.ndarray = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return odds

    def check_against(self, cache: FeatureCache) -> None:
        """Refuse a cache whose features were made in another way.

        Raises
        ------
        HeadMismatch
            If a fingerprint differs; the message names the fields.
        UnknownLayer
            If the cache lacks a layer.
        """
        theirs = Source.of(cache, tuple(layer.name for layer in self.source.layers))
        pairs = list(zip(self.source.layers, theirs.layers, strict=True))
        if all(our.fingerprint == their.fingerprint for our, their in pairs):
            return
        differing = list(_differences(asdict(self.source), asdict(theirs)))
        raise HeadMismatch(
            f"this head was trained on other features than those in {cache.path}: "
            f"{'; '.join(differing)}. Train it again on this cache with `classify fit`, or give "
            "the cache it was made from"
        )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Each field that decides the features and differs, with both values."""
    fields = [
        (name, ours[name], theirs[name]) for name in ("backbone", "weights_sha256", "precision")
    ]
    mine, other = ours["preprocess"], theirs["preprocess"]
    keys = sorted(mine.keys() | other.keys())
    fields += [(f"preprocess {key}", mine.get(key), other.get(key)) for key in keys]
    for our, their in zip(ours["layers"], theirs["layers"], strict=True):
        keys = ["dtype", "dim", "fingerprint"] if our["fingerprint"] != their["fingerprint"] else []
        fields += [(f"{our['name']} {key}", our[key], their[key]) for key in keys]
    for name, our, their in fields:
        if our != their:
            yield f"{name} is {_short(our)} in the head, {_short(their)} in the cache"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."
