"""A trained head: what scores, what its classes are called, and where its features come from."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from classify.data.folds import hash_prefixes
from classify.data.preparation import ROOT_L2, root_l2_by_layer
from classify.errors import CallError, HeadMismatchError
from classify.heads.models import LinearModel, MLPModel, SklearnModel
from featurize.cache.format import Extractor
from featurize.cache.reader import FeatureCache
from featurize.images.preprocess import Preprocess
from featurize.layer_spec import LayerSpec

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class HeadLayer:
    """A layer that a head reads, as its cache described it."""

    name: str
    layer: str
    pool: str
    dtype: str
    dim: int
    fingerprint: str

    @property
    def spec(self) -> LayerSpec:
        """The layer and its pool."""
        return LayerSpec(self.layer, self.pool)


@dataclass(frozen=True)
class FeatureSource:
    """What made the features that a head was trained on."""

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    precision: str
    layers: tuple[HeadLayer, ...]

    @property
    def extractor(self) -> Extractor:
        """The same without the layers."""
        made = (self.backbone, self.weights, self.weights_sha256, self.preprocess, self.precision)
        return Extractor(*made, environment={})

    @classmethod
    def from_cache(cls, cache: FeatureCache, layers: tuple[str, ...]) -> "FeatureSource":
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
    """A classifier on embeddings, as `classify.fit` and `classify.load_head` return it.

    Attributes
    ----------
    head : str
        Its kind: ``softmax``, ``ridge``, ...
    classes : list of str
        Names of the classes, in the order of the scores. K of them.
    prepare : str
        How features are prepared before they are scored: ``root-l2``, layer by layer; or
        ``standardise``, which is a part of the scorer.
    scorer : LinearModel, MLPModel or SklearnModel
        Arrays, or a scikit-learn pipeline, of prepared features; the bias of its calibration is in
        its scores.
    probabilistic : bool
        Whether the softmax of the scores is its own idea of the probabilities.
    temperature : float, or None
        What the scores are divided by for calibrated probabilities.
    settings : dict of str to float
        What was chosen: ``{"C": 0.01}``.
    task : str
    source : FeatureSource
        The backbone, and the layers whose features are joined to D columns.
    record : dict
        How it scored; the keys of a `HeadResult`.
    seen : uint64 array
        The beginnings of the hashes of the images it was trained on, or its setting chosen by,
        sorted: it is not to be scored on them.
    notices : tuple of str
        What a user should know about this fit. Not saved.
    network : path, or None
        The file that holds the network as well, where that was fine-tuned with the head.
    """

    head: str
    classes: list[str]
    prepare: str
    scorer: LinearModel | MLPModel | SklearnModel
    probabilistic: bool
    temperature: float | None
    settings: Mapping[str, float]
    task: str
    source: FeatureSource
    record: Mapping[str, Any]
    seen: np.ndarray
    notices: tuple[str, ...] = ()
    network: Path | None = None

    def __repr__(self) -> str:
        layers = "+".join(layer.name for layer in self.source.layers)
        chosen = "".join(f", {name}={value:g}" for name, value in self.settings.items())
        return f"FittedHead({self.head} on {layers}, {len(self.classes)} classes{chosen})"

    def scores(self, X: np.ndarray) -> np.ndarray:
        """One score for each class, the greatest of which wins.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; taken as float32.

        Returns
        -------
        float32 array of shape (n, K)

        Raises
        ------
        CallError
            If `X` is of another shape.
        """
        X = np.asarray(X, np.float32)
        if X.ndim != 2 or X.shape[1] != self.scorer.dim:
            raise CallError(
                f"this head takes features of shape (n, {self.scorer.dim}), not {X.shape}"
            )
        if self.prepare == ROOT_L2:
            X = root_l2_by_layer(X, self.widths)
        return self.scorer.decision_values(X)

    @property
    def widths(self) -> list[int]:
        """How many columns each layer has."""
        return [layer.dim for layer in self.source.layers]

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """`scores`, for two classes as scikit-learn has them.

        Returns
        -------
        float32 array of shape (n, K), or (n,) for two classes
            Of two classes, how much greater the second one's is.
        """
        scores = self.scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes) == 2 else scores

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The best class's name for each row: text array of shape (n,)."""
        names: np.ndarray = np.array(self.classes)[self.scores(X).argmax(axis=1)]
        return names

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, calibrated where that was measured.

        Returns
        -------
        float array of shape (n, K)
            Each row's sum is 1.

        Raises
        ------
        CallError
            If the head has neither probabilities of its own nor a temperature.
        """
        return self.probabilities(self.scores(X))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """`predict_proba`, from `scores`."""
        if self.temperature is None and not self.probabilistic:
            raise CallError(
                f"this {self.head} head has scores but no probabilities: nothing was held out to "
                "calibrate them with"
            )
        found: np.ndarray = softmax(scores.astype(np.float64) / (self.temperature or 1), axis=1)
        return found

    def to_sklearn(self) -> "Pipeline":
        """The same classifier in scikit-learn's own terms, fitted, for whatever takes one.

        Returns
        -------
        Pipeline
            From features (n, D) as the cache has them to the names of the classes. It begins with
            `RootL2` where the head does. Of a linear head, whatever it was trained as, follow a
            `StandardScaler` and a `LogisticRegression` with the calibrated probabilities; or a
            `LinearSVC` where there are none. Other heads are the pipeline that scikit-learn
            trained, not calibrated: its ``classes_`` are positions in `classes`.

        Raises
        ------
        CallError
            If the head has a hidden layer.
        """
        from classify.heads.sklearn_pipeline import make_fitted_root_l2, make_linear_pipeline

        if isinstance(self.scorer, MLPModel):
            raise CallError("a head with a hidden layer has no counterpart in scikit-learn")
        if isinstance(self.scorer, SklearnModel):
            found: Pipeline = deepcopy(self.scorer.estimator)
        else:
            heat = self.temperature or (1.0 if self.probabilistic else None)
            found = make_linear_pipeline(self.scorer, self.classes, heat)
        if self.prepare == ROOT_L2:
            found.steps.insert(0, ("prepare", make_fitted_root_l2(self.widths)))
        return found

    def trained_on(self, contents: np.ndarray) -> np.ndarray:
        """Which images it was trained on or chosen by: bool (n,), from SHA-256 (n, 32) uint8."""
        return np.isin(hash_prefixes(contents), self.seen)

    def check_against(self, cache: FeatureCache) -> None:
        """Refuse a cache whose features were made in another way.

        Raises
        ------
        HeadMismatch
            If a fingerprint differs; the message names the fields.
        UnknownLayer
            If the cache lacks a layer.
        """
        theirs = FeatureSource.from_cache(cache, tuple(layer.name for layer in self.source.layers))
        pairs = list(zip(self.source.layers, theirs.layers, strict=True))
        if all(our.fingerprint == their.fingerprint for our, their in pairs):
            return
        differences = self.source.extractor.differences(cache.extractor)
        for our, their in pairs:
            differences |= _find_layer_differences(our, their)
        differing = [
            f"{name} is {_shorten(our)} in the head, {_shorten(their)} in the cache"
            for name, (our, their) in differences.items()
        ]
        raise HeadMismatchError(
            f"this head was trained on other features than those in {cache.path}: "
            f"{'; '.join(differing)}. Train it again on this cache with `classify fit`, or give "
            "the cache it was made from"
        )


def _find_layer_differences(ours: HeadLayer, theirs: HeadLayer) -> dict[str, tuple[Any, Any]]:
    if ours.fingerprint == theirs.fingerprint:
        return {}
    pairs = {key: (getattr(ours, key), getattr(theirs, key)) for key in ("dtype", "dim")}
    pairs["fingerprint"] = ours.fingerprint, theirs.fingerprint
    return {f"{ours.name} {key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."
