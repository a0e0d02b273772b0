"""How like the source the images are: accuracy of a linear head by depth, and what follows.

On photographs like those that a backbone was trained on, its last layer is the best. On very
different ones an earlier layer is as good or better: the upper layers know the source's classes
only (J. Yosinski et al., 2014, "How transferable are features in deep neural networks?", NeurIPS).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any

import numpy as np

from classify.errors import CallError
from classify.evaluation.bootstrap import Estimate, bootstrap_means
from classify.evaluation.predictions import HeldOutPredictions
from featurize.backbones.families import find_family
from featurize.cache.reader import FeatureCache

SIMILAR, DIFFERENT, UNSURE = "similar", "different", "cannot tell yet"
MIN_ERROR_REDUCTION = 0.1  # share of the last layer's errors that a clearly better cut spares
MAX_LOWER_DEPTH = 0.6  # cuts at this depth or before leave the upper part of a network away
EQUAL_MARGIN = 0.05  # share of the last layer's errors that a cut may add and still count as equal
N_PARTS = 10  # parts of the images; a cut is chosen on nine, and judged on the tenth
MAX_IMAGES_FACTOR = 100.0  # times as many images: beyond it, more images are no advice


@dataclass(frozen=True)
class LayerDepths:
    """How deep the layers of a cache lie.

    Attributes
    ----------
    share : dict of str to float
        By dataset name, above 0 to 1: the layer's position among `stages` of them.
    stages : int
    among : str
        What is counted: the stages of a known network, else the layers of the cache.
    beyond : str
        The network's last layer where the cache ends before it; else empty.
    """

    relative: dict[str, float]
    n_stages: int
    among: str
    missing_last_layer: str

    @classmethod
    def from_cache(cls, cache: FeatureCache) -> "LayerDepths":
        """Look a cache's layers up among the stages of its backbone.

        Raises
        ------
        CallError
            If there are not two layers to compare.
        """
        names = {info.layer: None for info in cache.layers.values()}
        if len(names) < 2:
            line = f"featurize run {quote(cache.root or 'IMAGES')} -o {quote(str(cache.path))}"
            raise CallError(
                f"{cache.path} has features of one layer only ({', '.join(names)}), so there is "
                f"nothing to compare it with; add the others with `{line} --layers auto`"
            )
        family = find_family(cache.extractor.backbone)
        stages = list(names)
        among = "the layers of the cache"
        beyond = ""
        if family is not None and names.keys() <= set(family.stages):
            stages = list(family.stages)
            among = f"the stages of {cache.extractor.backbone}"
            beyond = "" if family.last in names else family.last
        place = {name: (i + 1) / len(stages) for i, name in enumerate(stages)}
        share = {name: place[info.layer] for name, info in cache.layers.items()}
        return cls(share, len(stages), among, beyond)


@dataclass(frozen=True)
class CutCandidate:
    """A layer to cut at before the last, chosen and judged on different images.

    Attributes
    ----------
    layer : str
        The best one on all images.
    accuracy : Estimate
        Of the cuts chosen on the other parts, each on its own part.
    gain : Estimate
        Its accuracy less the last layer's, on the same images.
    """

    layer: str
    accuracy: Estimate
    gain: Estimate


@dataclass(frozen=True)
class DepthProfile:
    """Accuracy by depth, and whether the images are like those of the source.

    Attributes
    ----------
    profile : dict of str to Estimate
        Accuracy out of fold by layer, shallowest first.
    depths : LayerDepths
    last : str
        The deepest layer.
    cut : CutCandidate
        The best of all earlier layers.
    lower : CutCandidate, or None
        The best at 60 % of the depth or before; None if the cache has none.
    joined : Estimate, or None
        What all layers joined gain over the last.
    losses : dict of str to float
        The log loss out of fold by layer; that of all joined under an empty name.
    images, units : int
        Images that were judged, and how many groups (or images) could be drawn anew.
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
        """Share of the images that the last layer has wrong."""
        return 1 - self.accuracy_by_layer[self.last_layer].value

    def error_reduction(self, gain: Estimate) -> float:
        """Share of the last layer's errors that a gain spares; negative if it adds some."""
        return gain.value / self.error_rate if self.error_rate else 0.0

    def is_clear_gain(self, gain: Estimate) -> bool:
        """Whether a gain over the last layer is clear: no chance, and a tenth of the errors."""
        return gain.low > 0 and self.error_reduction(gain) >= MIN_ERROR_REDUCTION

    @property
    def upper_layers_redundant(self) -> bool:
        """Whether the upper part adds nothing: a low cut has at most a twentieth more errors."""
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
        """Where to cut: the best layer before the last, or a low one that is as good.

        That is where only the upper part adds nothing, and the low cut has at most a twentieth of
        the last layer's errors more than the best.
        """
        low = self.lower_cut
        if low is None or not self.upper_layers_redundant or self.is_clear_gain(self.cut.gain):
            return self.cut.layer
        more = (
            self.accuracy_by_layer[self.cut.layer].value - self.accuracy_by_layer[low.layer].value
        )
        return low.layer if more <= EQUAL_MARGIN * self.error_rate else self.cut.layer

    @property
    def _images_factor(self) -> float:
        """How many times as many images would settle the verdict, 1 where it is settled."""
        if self.is_clear_gain(self.cut.gain):
            return 1.0
        idle = math.inf
        if self.lower_cut is not None:
            idle = _compute_images_factor(self.lower_cut.gain, -EQUAL_MARGIN * self.error_rate)
        if self.upper_layers_redundant:
            return idle
        gain, tenth = self.cut.gain, MIN_ERROR_REDUCTION * self.error_rate
        # Not clear because it may be chance, or because it is too small.
        better = (
            _compute_images_factor(gain, 0.0)
            if gain.value >= tenth
            else _compute_images_factor(gain, tenth)
        )
        return max(idle, better)

    @property
    def is_confident(self) -> bool:
        """Whether the intervals are narrow enough to tell."""
        return self._images_factor <= 1

    @property
    def answer(self) -> str:
        """``different``, ``similar``, or ``cannot tell yet`` where the intervals allow either."""
        return self.verdict if self.is_confident else UNSURE

    def is_joined_better(self, layer: str) -> bool:
        """Whether all layers joined have a lower log loss than one."""
        return self.log_losses.get("", np.inf) < self.log_losses[layer]

    @property
    def costs_if_wrong(self) -> dict[str, float]:
        """What it may cost, in accuracy, to put the head at the wrong one of two layers.

        By the answer that is taken and wrong: the greater end of the interval of what the other
        layer has ahead, and 0 where that has nothing.
        """
        return {SIMILAR: max(0.0, self.cut.gain.high), DIFFERENT: max(0.0, -self.cut.gain.low)}

    def images_needed(self, n_train: int) -> int | None:
        """About how many images more would do; None where even a hundred times as many might not.

        Intervals narrow with the root of the number of images.

        Parameters
        ----------
        n_train : int
            Images that there are to learn from.
        """
        if self._images_factor > MAX_IMAGES_FACTOR:
            return None
        return _round_to_two_digits(n_train * (self._images_factor - 1))

    def to_dict(self) -> dict[str, Any]:
        """The same as what JSON knows."""
        return {
            "profile": [
                {"layer": name, "depth": self.depths.relative[name], "validation": found.value}
                | {"validation_ci": [found.low, found.high]}
                for name, found in self.accuracy_by_layer.items()
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
    """Measure accuracy by depth, each cut chosen on other images than it is judged on.

    Parameters
    ----------
    depths : LayerDepths
    predictions : mapping of str to HeldOutPredictions
        By layer of the cache, shallowest first: a linear head's answers on n images that it was
        not trained on, the same for every layer.
    joined : HeldOutPredictions, or None
        The same of all layers joined.
    unit : int array of shape (n,)
        The group of each image, or a number of its own; groups stay whole.
    seed : int
        For the parts and the bootstrap.

    """
    last = list(predictions)[-1]
    earlier = [name for name in predictions if depths.relative[name] < depths.relative[last]]
    low = [name for name in earlier if depths.relative[name] <= MAX_LOWER_DEPTH]
    right = {name: found.correct for name, found in predictions.items()}
    _, unit = np.unique(unit, return_inverse=True)
    units = int(unit.max()) + 1
    part = (np.random.default_rng(seed).permutation(units) % min(N_PARTS, units))[unit]
    nested = {
        name: _evaluate_nested_choice(right, some, part)
        for name, some in (("cut", earlier), ("low", low))
    }
    accuracies = bootstrap_means(
        _stack_columns([*right.values(), *nested.values()]), unit, (0, 1), seed
    )
    others = [*nested.values()] + ([] if joined is None else [joined.correct])
    gains = bootstrap_means(_stack_columns(others) - right[last][:, None], unit, (-1, 1), seed)
    profile = dict(zip(predictions, accuracies, strict=False))

    def cut(some: list[str], i: int) -> CutCandidate:
        best = max(some, key=lambda name: profile[name].value)  # of equals the shallower
        return CutCandidate(best, accuracies[len(profile) + i], gains[i])

    return DepthProfile(
        accuracy_by_layer=profile,
        depths=depths,
        last_layer=last,
        cut=cut(earlier, 0),
        lower_cut=cut(low, 1) if low else None,
        joined_gain=None if joined is None else gains[2],
        log_losses={
            name: found.calibrated_log_loss
            for name, found in [*predictions.items(), *([] if joined is None else [("", joined)])]
        },
        n_images=len(unit),
        n_units=units,
    )


def _evaluate_nested_choice(
    right: Mapping[str, np.ndarray], some: list[str], part: np.ndarray
) -> np.ndarray:
    """Which images are right if, for each part, the layer is chosen on the others: bool (n,)."""
    found = np.zeros(len(part), bool)
    if not some:
        return found
    correct = _stack_columns([right[name] for name in some]) > 0
    for i in range(int(part.max()) + 1):
        inside = part == i
        best = correct[~inside].mean(axis=0).argmax()
        found[inside] = correct[inside, best]
    return found


def _stack_columns(columns: list[np.ndarray]) -> np.ndarray:
    return np.stack(columns, axis=1).astype(float)


def _compute_images_factor(found: Estimate, threshold: float) -> float:
    """How many times as many images would take a threshold out of an interval: 1 if it is out."""
    if not found.low <= threshold <= found.high:
        return 1.0
    away = abs(found.value - threshold)
    return ((found.high - found.low) / 2 / away) ** 2 if away else math.inf


def _round_to_two_digits(number: float) -> int:
    """Two digits are as much as can be said of it."""
    step: int = 10 ** max(0, len(str(int(number))) - 2)
    return math.ceil(number / step) * step
