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
from classify.doubt.novelty import Novelty
from classify.errors import CallError
from classify.heads.models import LinearModel, MLPModel, SklearnModel
from classify.heads.source import FeatureSource
from featurize.cache.reader import FeatureCache

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


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
    coverage : float, or None
        Share of new images whose class `predict_sets` holds; None where nothing was held out.
    set_threshold : float, or None
        The probability from which a class belongs to a set.
    novelty : Novelty, or None
        What tells images that are unlike all that the head was trained on.
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
    coverage: float | None = None
    set_threshold: float | None = None
    novelty: Novelty | None = None

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
        return self.scorer.decision_values(self.prepare_features(X))

    def prepare_features(self, X: np.ndarray) -> np.ndarray:
        """Prepare features as the model takes them.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        float32 array of shape (n, D)
            The square roots of each layer's features at unit length, or the features as they are.
        """
        X = np.asarray(X, np.float32)
        return root_l2_by_layer(X, self.widths) if self.prepare == ROOT_L2 else X

    def predict_sets(self, X: np.ndarray) -> np.ndarray:
        """Predict for each row the set of classes it may have.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        bool array of shape (n, K)
            Which classes belong to the set. It holds the true class of the share `coverage` of
            images like those held out, and may be empty.

        Raises
        ------
        CallError
            If nothing was held out to set a threshold by.
        """
        if self.set_threshold is None:
            raise CallError("this head has no prediction sets: nothing was held out")
        return self.predict_proba(X) >= self.set_threshold

    def novelty_scores(self, X: np.ndarray) -> np.ndarray:
        """Score how unlike each row is to all that the head was trained on.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        float64 array of shape (n,)
            Higher is less alike, see `classify.doubt.novelty`.

        Raises
        ------
        CallError
            If the head does not know: it was saved by an older release, or nothing was held out.
        """
        if self.novelty is None:
            raise CallError("this head cannot tell what is unlike its training images")
        return self.novelty.scores(self.prepare_features(X), self.predict_proba(X))

    def is_unknown(self, X: np.ndarray) -> np.ndarray:
        """Tell the rows that are unlike all that the head was trained on.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.

        Returns
        -------
        bool array of shape (n,)
            5 % of new images of known classes are taken for unknown.

        Raises
        ------
        CallError
            As `novelty_scores` does.
        """
        unknown = self.find_doubt(X, self.scores(X))[1]
        if unknown is None:
            raise CallError("this head cannot tell what is unlike its training images")
        return unknown

    def find_doubt(
        self, X: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Find the sets of classes and the unknown rows at once, from scores that are known.

        Parameters
        ----------
        X : array of shape (n, D)
            As in `scores`.
        scores : float array of shape (n, K)
            As `scores` returns them.

        Returns
        -------
        sets : bool array of shape (n, K), or None
            As `predict_sets` returns them; None where there is no threshold.
        unknown : bool array of shape (n,), or None
            As `is_unknown` returns it; None where the head cannot tell.
        """
        if self.set_threshold is None and self.novelty is None:
            return None, None
        proba = self.probabilities(scores)
        sets = None if self.set_threshold is None else proba >= self.set_threshold
        unknown = None
        if self.novelty is not None:
            novelty_scores = self.novelty.scores(self.prepare_features(X), proba)
            unknown = np.asarray(novelty_scores > self.novelty.threshold)
        return sets, unknown

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
