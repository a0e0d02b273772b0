"""A trained head: its model, its classes and the source of its features."""

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
    """A layer that a head reads, as its cache described it.

    Attributes
    ----------
    name : str
        Name of the layer in the cache.
    layer, pool : str
        Layer of the backbone, and the pooling of its output.
    dtype : str
        Stored type of the features: ``<f4`` or ``<f2``.
    dim : int
        Number of features.
    fingerprint : str
        Hash of everything that determines the features.
    """

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
    """The backbone, preprocessing and layers that the features of a head come from.

    Attributes
    ----------
    backbone, weights : str
        Names of the backbone and of its weights, or the path of a weights file.
    weights_sha256 : str
        SHA-256 of the weights, hexadecimal.
    preprocess : Preprocess
        Resizing, cropping and normalisation of the images.
    precision : str
        Numeric precision of the backbone's forward pass.
    layers : tuple of HeadLayer
        Layers whose features are joined, in order.
    licence : str
        Licence of the weights, as published; empty if it is not known.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Preprocess
    precision: str
    layers: tuple[HeadLayer, ...]
    licence: str = ""

    @property
    def extractor(self) -> Extractor:
        """The extractor: everything but the layers."""
        fields = (self.backbone, self.weights, self.weights_sha256, self.preprocess, self.precision)
        return Extractor(*fields, environment={})

    @classmethod
    def from_cache(cls, cache: FeatureCache, layers: tuple[str, ...]) -> "FeatureSource":
        """Read the source of some layers from a cache.

        Parameters
        ----------
        cache : FeatureCache
            The cache.
        layers : tuple of str
            Names of layers in the cache.

        Returns
        -------
        FeatureSource
            Its layers are in the given order.
        """
        extractor, infos = cache.extractor, [cache.layer(name) for name in layers]
        return cls(
            backbone=extractor.backbone,
            weights=extractor.weights,
            weights_sha256=extractor.weights_sha256,
            preprocess=extractor.preprocess,
            precision=extractor.precision,
            layers=tuple(
                HeadLayer(i.name, i.layer, i.pool, i.dtype, i.dim, i.fingerprint) for i in infos
            ),
            licence=str(extractor.environment.get("licence", "")),
        )

    def check_against(self, cache: FeatureCache) -> None:
        """Check that a cache has the features of this source.

        Parameters
        ----------
        cache : FeatureCache
            The cache to predict or evaluate on.

        Raises
        ------
        HeadMismatchError
            If a fingerprint differs; the message names the fields.
        UnknownLayerError
            If the cache lacks a layer.
        """
        theirs = FeatureSource.from_cache(cache, tuple(layer.name for layer in self.layers))
        pairs = list(zip(self.layers, theirs.layers, strict=True))
        if all(our.fingerprint == their.fingerprint for our, their in pairs):
            return
        differences = self.extractor.differences(cache.extractor)
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


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A classifier on embeddings, as `classify.fit` and `classify.load_head` return it.

    Attributes
    ----------
    head : str
        Kind of head: ``softmax``, ``ridge``, ...
    classes : list of str
        Names of the K classes, in the order of the decision values.
    prepare : str
        Preparation of the features: ``root-l2``, applied layer by layer; or ``standardise``, which
        is part of the model.
    scorer : LinearModel, MLPModel or SklearnModel
        The model, from prepared features to decision values. It includes the bias of the
        calibration.
    probabilistic : bool
        Whether the softmax of the decision values gives the model's own probabilities.
    temperature : float, or None
        Divisor of the decision values for calibrated probabilities.
    settings : dict of str to float
        Selected params: ``{"C": 0.01}``.
    task : str
        Name of the task.
    source : FeatureSource
        The backbone, and the layers whose features are joined to D columns.
    record : dict
        Results of the fit; the keys of a `HeadResult`.
    seen : uint64 array
        Sorted hash prefixes of the images that the head was trained or its param selected on. It
        must not be evaluated on them.
    notices : tuple of str
        Messages for the user about this fit. Not saved.
    network : path, or None
        File that also holds the network, where it was fine-tuned with the head.
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
        params = "".join(f", {name}={value:g}" for name, value in self.settings.items())
        return f"FittedHead({self.head} on {layers}, {len(self.classes)} classes{params})"

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Compute decision values of all K classes; the largest is the prediction.

        Parameters
        ----------
        X : array of shape (n, D)
            Features as in the cache; converted to float32.

        Returns
        -------
        float32 array of shape (n, K)
            A column for each of `classes`.

        Raises
        ------
        CallError
            If `X` has another shape, or decision values are not finite.
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
        """Number of columns of each layer."""
        return [layer.dim for layer in self.source.layers]

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Compute decision values in scikit-learn's shape.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        float32 array of shape (n, K), or (n,) for two classes
            For two classes, the decision value of the second minus that of the first.
        """
        values = self.scores(X)
        return values[:, 1] - values[:, 0] if len(self.classes) == 2 else values

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predict the class of each row.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        str array of shape (n,)
            Names of classes.
        """
        names: np.ndarray = np.array(self.classes)[self.scores(X).argmax(axis=1)]
        return names

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Compute class probabilities, calibrated where the head has a temperature.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        float64 array of shape (n, K)
            Each row sums to 1.

        Raises
        ------
        CallError
            If the head has neither probabilities of its own nor a temperature.
        """
        return self.probabilities(self.scores(X))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Compute class probabilities from decision values.

        Parameters
        ----------
        scores : float array of shape (n, K)
            Decision values, as `scores` returns them.

        Returns
        -------
        float64 array of shape (n, K)
            Each row sums to 1.

        Raises
        ------
        CallError
            If the head has neither probabilities of its own nor a temperature.
        """
        if self.temperature is None and not self.probabilistic:
            raise CallError(
                f"this {self.head} head has scores but no probabilities: nothing was held out to "
                "calibrate them with"
            )
        proba: np.ndarray = softmax(scores.astype(np.float64) / (self.temperature or 1), axis=1)
        return proba

    def to_sklearn(self) -> "Pipeline":
        """Convert the head to a fitted scikit-learn pipeline.

        Returns
        -------
        Pipeline
            It takes features (n, D) as in the cache and predicts names of classes. It begins with
            `RootL2` where the head is prepared so. A linear head of any kind becomes a
            `StandardScaler` and a `LogisticRegression` with the calibrated probabilities, or a
            `LinearSVC` where there are no probabilities. Other heads are the pipeline that
            scikit-learn trained, not calibrated: its ``classes_`` are positions in `classes`.

        Raises
        ------
        CallError
            If the head has a hidden layer.
        """
        from classify.heads.sklearn_pipeline import make_fitted_root_l2, make_linear_pipeline

        if isinstance(self.scorer, MLPModel):
            raise CallError("a head with a hidden layer has no counterpart in scikit-learn")
        if isinstance(self.scorer, SklearnModel):
            pipeline: Pipeline = deepcopy(self.scorer.estimator)
        else:
            temperature = self.temperature or (1.0 if self.probabilistic else None)
            pipeline = make_linear_pipeline(self.scorer, self.classes, temperature)
        if self.prepare == ROOT_L2:
            pipeline.steps.insert(0, ("prepare", make_fitted_root_l2(self.widths)))
        return pipeline

    def trained_on(self, contents: np.ndarray) -> np.ndarray:
        """Find the images that the head was trained or its param selected on.

        Parameters
        ----------
        contents : uint8 array of shape (n, 32)
            SHA-256 of the images.

        Returns
        -------
        bool array of shape (n,)
            True for images that the head has seen.
        """
        return np.isin(hash_prefixes(contents), self.seen)

    def check_against(self, cache: FeatureCache) -> None:
        """Check that a cache has the features that the head was trained on.

        Parameters
        ----------
        cache : FeatureCache
            The cache to predict or evaluate on.

        Raises
        ------
        HeadMismatchError
            If a fingerprint differs; the message names the fields.
        UnknownLayerError
            If the cache lacks a layer of the head.
        """
        self.source.check_against(cache)


def _find_layer_differences(ours: HeadLayer, theirs: HeadLayer) -> dict[str, tuple[Any, Any]]:
    if ours.fingerprint == theirs.fingerprint:
        return {}
    pairs = {key: (getattr(ours, key), getattr(theirs, key)) for key in ("dtype", "dim")}
    pairs["fingerprint"] = ours.fingerprint, theirs.fingerprint
    return {f"{ours.name} {key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "..."
