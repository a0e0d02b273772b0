"""Similarity of the images to the backbone's training data, from accuracy by depth.

On images similar to the training data, a linear head does best on the last layer. On very different
images an earlier layer is as good or better, because upper layers are specific to the original
classes (J. Yosinski et al., 2014, "How transferable are features in deep neural networks?",
NeurIPS).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from classify.evaluation.bootstrap import Estimate, bootstrap_means
from classify.evaluation.predictions import HeldOutPredictions
from classify.strategy.layer_depths import LayerDepths

SIMILAR, DIFFERENT, UNSURE = "similar", "different", "cannot tell yet"
MIN_ERROR_REDUCTION = 0.1  # fraction of the last layer's errors that a clearly better cut avoids
MAX_LOWER_DEPTH = 0.6  # a cut at this relative depth or below omits the upper part of a network
EQUAL_MARGIN = 0.05  # errors that an equal cut may add, as a fraction of the last layer's
N_PARTS = 10  # parts of the images: a cut is selected on nine and evaluated on the tenth
MAX_IMAGES_FACTOR = 100.0  # above it, collecting more images is no realistic advice


@dataclass(frozen=True)
class CutCandidate:
    """A layer before the last to cut at, selected and evaluated on different images.

    Attributes
    ----------
    layer : str
        The best layer on all images.
    accuracy : Estimate
        Accuracy with nested selection: on each part, of the layer that is best on the other parts.
    gain : Estimate
        That accuracy minus the last layer's, on the same images.
    """

    layer: str
    accuracy: Estimate
    gain: Estimate


@dataclass(frozen=True)
class DepthProfile:
    """Accuracy by depth, and what it tells about the similarity to the source.

    Attributes
    ----------
    accuracy_by_layer : dict of str to Estimate
        Held-out accuracy by layer, shallowest first.
    depths : LayerDepths
    last_layer : str
        The deepest layer of the cache.
    cut : CutCandidate
        The best of all earlier layers.
    lower_cut : CutCandidate, or None
        The best at 60 % of the depth or below; None if the cache has none.
    joined_gain : Estimate, or None
        Accuracy of all layers joined minus the last layer's.
    log_losses : dict of str to float
        Held-out log loss by layer; that of all layers joined has an empty name.
    n_images, n_units : int
        Number of held-out images, and of the groups (or single images) that the bootstrap draws.
    """

    accuracy_by_layer: dict[str, Estimate]
    depths: LayerDepths
    last_layer: str
    cut: CutCandidate
    lower_cut: CutCandidate | None
    joined_gain: Estimate | None
    log_losses: dict[str, float]
    n_images: int
    n_units: int

    @property
    def error_rate(self) -> float:
        """Fraction of the images that the last layer gets wrong."""
        return 1 - self.accuracy_by_layer[self.last_layer].value

    def error_reduction(self, gain: Estimate) -> float:
        """Return a gain as a fraction of the last layer's errors.

        Parameters
        ----------
        gain : Estimate
            Accuracy minus the last layer's.

        Returns
        -------
        float
            Negative if there are more errors; 0 if the last layer has none.
        """
        return gain.value / self.error_rate if self.error_rate else 0.0

    def is_clear_gain(self, gain: Estimate) -> bool:
        """Return whether a gain over the last layer is clear.

        Parameters
        ----------
        gain : Estimate
            Accuracy minus the last layer's.

        Returns
        -------
        bool
            Whether its interval is above 0, and it avoids at least a tenth of the errors.
        """
        return gain.low > 0 and self.error_reduction(gain) >= MIN_ERROR_REDUCTION

    @property
    def upper_layers_redundant(self) -> bool:
        """Whether a low cut has at most 5 % more errors, so that the upper layers add nothing."""
        return (
            self.lower_cut is not None
            and self.lower_cut.gain.value >= -EQUAL_MARGIN * self.error_rate
        )

    @property
    def verdict(self) -> str:
        """``different`` or ``similar``, whichever is likelier."""
        return (
            DIFFERENT
            if self.is_clear_gain(self.cut.gain) or self.upper_layers_redundant
            else SIMILAR
        )

    @property
    def best_cut_layer(self) -> str:
        """The layer to cut at: the best before the last, or a low one that is as good.

        The low one is taken where the upper part is redundant, the best cut is not clearly better
        than the last layer, and it exceeds the low cut by at most 5 % of the last layer's errors.
        """
        lower_cut = self.lower_cut
        if (
            lower_cut is None
            or not self.upper_layers_redundant
            or self.is_clear_gain(self.cut.gain)
        ):
            return self.cut.layer
        advantage = (
            self.accuracy_by_layer[self.cut.layer].value
            - self.accuracy_by_layer[lower_cut.layer].value
        )
        return lower_cut.layer if advantage <= EQUAL_MARGIN * self.error_rate else self.cut.layer

    @property
    def _images_factor(self) -> float:
        """Factor on the number of images that would settle the verdict; 1 if it is settled."""
        if self.is_clear_gain(self.cut.gain):
            return 1.0
        factor_if_redundant = math.inf
        if self.lower_cut is not None:
            factor_if_redundant = _compute_images_factor(
                self.lower_cut.gain, -EQUAL_MARGIN * self.error_rate
            )
        if self.upper_layers_redundant:
            return factor_if_redundant
        gain, min_gain = self.cut.gain, MIN_ERROR_REDUCTION * self.error_rate
        # Either the gain may be chance, or it is too small.
        factor_if_better = (
            _compute_images_factor(gain, 0.0)
            if gain.value >= min_gain
            else _compute_images_factor(gain, min_gain)
        )
        return max(factor_if_redundant, factor_if_better)

    @property
    def is_confident(self) -> bool:
        """Whether the intervals are narrow enough for a verdict."""
        return self._images_factor <= 1

    @property
    def answer(self) -> str:
        """``different``, ``similar``, or ``cannot tell yet`` where the intervals allow either."""
        return self.verdict if self.is_confident else UNSURE

    def is_joined_better(self, layer: str) -> bool:
        """Return whether all layers joined have a lower log loss than one layer.

        Parameters
        ----------
        layer : str

        Returns
        -------
        bool
            False if the joined layers were not tried.
        """
        return self.log_losses.get("", np.inf) < self.log_losses[layer]

    @property
    def costs_if_wrong(self) -> dict[str, float]:
        """Largest plausible loss of accuracy for each answer if it is wrong.

        For an answer, it is the upper end of the interval of the other layer's advantage; 0 if the
        other layer has none.
        """
        return {SIMILAR: max(0.0, self.cut.gain.high), DIFFERENT: max(0.0, -self.cut.gain.low)}

    def images_needed(self, n_train: int) -> int | None:
        """Return about how many more images would settle the verdict.

        Intervals narrow with the square root of the number of images.

        Parameters
        ----------
        n_train : int
            Number of training images.

        Returns
        -------
        int or None
            0 if the verdict is settled; None if even 100 times as many images might not settle it.
        """
        if self._images_factor > MAX_IMAGES_FACTOR:
            return None
        return _round_to_two_digits(n_train * (self._images_factor - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as a dict for JSON.

        Returns
        -------
        dict
            The evidence of an advice; `classify.strategy.advise.Advice.to_dict` includes it.
        """
        return {
            "profile": [
                {"layer": name, "depth": self.depths.relative[name], "validation": accuracy.value}
                | {"validation_ci": [accuracy.low, accuracy.high]}
                for name, accuracy in self.accuracy_by_layer.items()
            ],
            "depth_among": self.depths.among,
            "last": self.last_layer,
            "cut": self._cut_to_dict(self.cut),
            "lower_cut": None if self.lower_cut is None else self._cut_to_dict(self.lower_cut),
            "clearly_better": self.is_clear_gain(self.cut.gain),
            "upper_part_adds": not self.upper_layers_redundant,
            "joined": None
            if self.joined_gain is None
            else {
                "gain": self.joined_gain.value,
                "gain_ci": [self.joined_gain.low, self.joined_gain.high],
            }
            | {
                "errors_saved": self.error_reduction(self.joined_gain),
                "clear": self.is_clear_gain(self.joined_gain),
            },
            "thresholds": {
                "errors_saved": MIN_ERROR_REDUCTION,
                "lower_depth": MAX_LOWER_DEPTH,
                "equal": EQUAL_MARGIN,
            },
            "costs_if_wrong": self.costs_if_wrong,
            "judged_images": self.n_images,
            "judged_units": self.n_units,
            "measured": self.verdict,
        }

    def _cut_to_dict(self, cut: CutCandidate) -> dict[str, Any]:
        return {
            "layer": cut.layer,
            "depth": self.depths.relative[cut.layer],
            "validation": cut.accuracy.value,
            "validation_ci": [cut.accuracy.low, cut.accuracy.high],
            "gain": cut.gain.value,
            "gain_ci": [cut.gain.low, cut.gain.high],
            "errors_saved": self.error_reduction(cut.gain),
        }


def measure_depth_profile(
    depths: LayerDepths,
    predictions: Mapping[str, HeldOutPredictions],
    joined: HeldOutPredictions | None,
    unit: np.ndarray,
    seed: int,
) -> DepthProfile:
    """Measure accuracy by depth; each cut is selected on other images than it is evaluated on.

    Parameters
    ----------
    depths : LayerDepths
    predictions : mapping of str to HeldOutPredictions
        By layer of the cache, shallowest first: a linear head's predictions on n held-out images,
        the same for every layer.
    joined : HeldOutPredictions, or None
        The same for all layers joined.
    unit : int array of shape (n,)
        Group of each image, or a number of its own; groups stay whole.
    seed : int
        Seed of the parts and of the bootstrap.

    Returns
    -------
    DepthProfile
    """
    last_layer = list(predictions)[-1]
    earlier = [name for name in predictions if depths.relative[name] < depths.relative[last_layer]]
    lower = [name for name in earlier if depths.relative[name] <= MAX_LOWER_DEPTH]
    correct = {name: held_out.correct for name, held_out in predictions.items()}
    _, unit = np.unique(unit, return_inverse=True)
    n_units = int(unit.max()) + 1
    part = (np.random.default_rng(seed).permutation(n_units) % min(N_PARTS, n_units))[unit]
    nested = {
        name: _evaluate_nested_choice(correct, candidates, part)
        for name, candidates in (("cut", earlier), ("low", lower))
    }
    accuracies = bootstrap_means(
        _stack_columns([*correct.values(), *nested.values()]), unit, (0, 1), seed
    )
    compared = [*nested.values()] + ([] if joined is None else [joined.correct])
    gains = bootstrap_means(
        _stack_columns(compared) - correct[last_layer][:, None], unit, (-1, 1), seed
    )
    accuracy_by_layer = dict(zip(predictions, accuracies, strict=False))

    def make_cut(candidates: list[str], i: int) -> CutCandidate:
        # Of equals, the shallower one.
        best = max(candidates, key=lambda name: accuracy_by_layer[name].value)
        return CutCandidate(best, accuracies[len(accuracy_by_layer) + i], gains[i])

    return DepthProfile(
        accuracy_by_layer=accuracy_by_layer,
        depths=depths,
        last_layer=last_layer,
        cut=make_cut(earlier, 0),
        lower_cut=make_cut(lower, 1) if lower else None,
        joined_gain=None if joined is None else gains[2],
        log_losses={
            name: held_out.calibrated_log_loss
            for name, held_out in [
                *predictions.items(),
                *([] if joined is None else [("", joined)]),
            ]
        },
        n_images=len(unit),
        n_units=n_units,
    )


def _evaluate_nested_choice(
    correct_by_layer: Mapping[str, np.ndarray], candidates: list[str], part: np.ndarray
) -> np.ndarray:
    """Return which images are right if each part's layer is selected on the others: bool (n,)."""
    nested_correct = np.zeros(len(part), bool)
    if not candidates:
        return nested_correct
    correct = _stack_columns([correct_by_layer[name] for name in candidates]) > 0
    for i in range(int(part.max()) + 1):
        in_part = part == i
        best = correct[~in_part].mean(axis=0).argmax()
        nested_correct[in_part] = correct[in_part, best]
    return nested_correct


def _stack_columns(columns: list[np.ndarray]) -> np.ndarray:
    """Stack boolean columns into a float array."""
    return np.stack(columns, axis=1).astype(float)


def _compute_images_factor(estimate: Estimate, threshold: float) -> float:
    """Return the factor on the number of images that moves a threshold out of an interval."""
    if not estimate.low <= threshold <= estimate.high:
        return 1.0
    distance = abs(estimate.value - threshold)
    return ((estimate.high - estimate.low) / 2 / distance) ** 2 if distance else math.inf


def _round_to_two_digits(number: float) -> int:
    """Round up to two digits, as the estimate is no more precise than that."""
    step: int = 10 ** max(0, len(str(int(number))) - 2)
    return math.ceil(number / step) * step
