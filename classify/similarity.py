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
from classify.outcomes import Outcomes
from classify.resampling import Estimate, means
from featurize.cache import FeatureCache
from featurize.families import family_of

SIMILAR, DIFFERENT, UNSURE = "similar", "different", "cannot tell yet"
SAVED = 0.1  # share of the last layer's errors that a clearly better cut spares
UPPER = 0.6  # cuts at this depth or before leave the upper part of a network away
MARGIN = 0.05  # share of the last layer's errors that a cut may add and still count as equal
PARTS = 10  # parts of the images; a cut is chosen on nine, and judged on the tenth
FAR = 100.0  # times as many images: beyond it, more images are no advice


@dataclass(frozen=True)
class Depths:
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

    share: dict[str, float]
    stages: int
    among: str
    beyond: str

    @classmethod
    def of(cls, cache: FeatureCache) -> "Depths":
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
        family = family_of(cache.extractor.backbone)
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
class Cut:
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
class Similarity:
    """Accuracy by depth, and whether the images are like those of the source.

    Attributes
    ----------
    profile : dict of str to Estimate
        Accuracy out of fold by layer, shallowest first.
    depths : Depths
    last : str
        The deepest layer.
    cut : Cut
        The best of all earlier layers.
    lower : Cut, or None
        The best at 60 % of the depth or before; None if the cache has none.
    joined : Estimate, or None
        What all layers joined gain over the last.
    losses : dict of str to float
        The log loss out of fold by layer; that of all joined under an empty name.
    images, units : int
        Images that were judged, and how many groups (or images) could be drawn anew.
    """

    profile: dict[str, Estimate]
    depths: Depths
    last: str
    cut: Cut
    lower: Cut | None
    joined: Estimate | None
    losses: dict[str, float]
    images: int
    units: int

    @property
    def errors(self) -> float:
        """Share of the images that the last layer has wrong."""
        return 1 - self.profile[self.last].value

    def saved(self, gain: Estimate) -> float:
        """Share of the last layer's errors that a gain spares; negative if it adds some."""
        return gain.value / self.errors if self.errors else 0.0

    def clear(self, gain: Estimate) -> bool:
        """Whether a gain over the last layer is clear: no chance, and a tenth of the errors."""
        return gain.low > 0 and self.saved(gain) >= SAVED

    @property
    def idle(self) -> bool:
        """Whether the upper part adds nothing: a low cut has at most a twentieth more errors."""
        return self.lower is not None and self.lower.gain.value >= -MARGIN * self.errors

    @property
    def verdict(self) -> str:
        """``different`` or ``similar``, whichever is likelier."""
        return DIFFERENT if self.clear(self.cut.gain) or self.idle else SIMILAR

    @property
    def best_cut(self) -> str:
        """Where to cut: the best layer before the last, or a low one that is as good.

        That is where only the upper part adds nothing, and the low cut has at most a twentieth of
        the last layer's errors more than the best.
        """
        low = self.lower
        if low is None or not self.idle or self.clear(self.cut.gain):
            return self.cut.layer
        more = self.profile[self.cut.layer].value - self.profile[low.layer].value
        return low.layer if more <= MARGIN * self.errors else self.cut.layer

    @property
    def _times(self) -> float:
        """How many times as many images would settle the verdict, 1 where it is settled."""
        if self.clear(self.cut.gain):
            return 1.0
        idle = math.inf
        if self.lower is not None:
            idle = _times(self.lower.gain, -MARGIN * self.errors)
        if self.idle:
            return idle
        gain, tenth = self.cut.gain, SAVED * self.errors
        # Not clear because it may be chance, or because it is too small.
        better = _times(gain, 0.0) if gain.value >= tenth else _times(gain, tenth)
        return max(idle, better)

    @property
    def confident(self) -> bool:
        """Whether the intervals are narrow enough to tell."""
        return self._times <= 1

    @property
    def answer(self) -> str:
        """``different``, ``similar``, or ``cannot tell yet`` where the intervals allow either."""
        return self.verdict if self.confident else UNSURE

    def joined_beats(self, layer: str) -> bool:
        """Whether all layers joined have a lower log loss than one."""
        return self.losses.get("", np.inf) < self.losses[layer]

    @property
    def costs(self) -> dict[str, float]:
        """What it may cost, in accuracy, to put the head at the wrong one of two layers.

        By the answer that is taken and wrong: the greater end of the interval of what the other
        layer has ahead, and 0 where that has nothing.
        """
        return {SIMILAR: max(0.0, self.cut.gain.high), DIFFERENT: max(0.0, -self.cut.gain.low)}

    def more(self, learnt: int) -> int | None:
        """About how many images more would do; None where even a hundred times as many might not.

        Intervals narrow with the root of the number of images.

        Parameters
        ----------
        learnt : int
            Images that there are to learn from.
        """
        if self._times > FAR:
            return None
        return _rounded(learnt * (self._times - 1))

    def to_json(self) -> dict[str, Any]:
        """The same as what JSON knows."""
        return {
            "profile": [
                {"layer": name, "depth": self.depths.share[name], "validation": found.value}
                | {"validation_ci": [found.low, found.high]}
                for name, found in self.profile.items()
            ],
            "depth_among": self.depths.among,
            "last": self.last,
            "cut": self._cut(self.cut),
            "lower_cut": None if self.lower is None else self._cut(self.lower),
            "clearly_better": self.clear(self.cut.gain),
            "upper_part_adds": not self.idle,
            "joined": None
            if self.joined is None
            else {"gain": self.joined.value, "gain_ci": [self.joined.low, self.joined.high]}
            | {"errors_saved": self.saved(self.joined), "clear": self.clear(self.joined)},
            "thresholds": {"errors_saved": SAVED, "lower_depth": UPPER, "equal": MARGIN},
            "costs_if_wrong": self.costs,
            "judged_images": self.images,
            "judged_units": self.units,
            "measured": self.verdict,
        }

    def _cut(self, cut: Cut) -> dict[str, Any]:
        return {
            "layer": cut.layer,
            "depth": self.depths.share[cut.layer],
            "validation": cut.accuracy.value,
            "validation_ci": [cut.accuracy.low, cut.accuracy.high],
            "gain": cut.gain.value,
            "gain_ci": [cut.gain.low, cut.gain.high],
            "errors_saved": self.saved(cut.gain),
        }


def by_depth(
    depths: Depths,
    answers: Mapping[str, Outcomes],
    joined: Outcomes | None,
    unit: np.ndarray,
    seed: int,
) -> Similarity:
    """Measure accuracy by depth, each cut chosen on other images than it is judged on.

    Parameters
    ----------
    depths : Depths
    answers : mapping of str to Outcomes
        By layer of the cache, shallowest first: a linear head's answers on n images that it was
        not trained on, the same for every layer.
    joined : Outcomes, or None
        The same of all layers joined.
    unit : int array of shape (n,)
        The group of each image, or a number of its own; groups stay whole.
    seed : int
        For the parts and the bootstrap.

    """
    last = list(answers)[-1]
    earlier = [name for name in answers if depths.share[name] < depths.share[last]]
    low = [name for name in earlier if depths.share[name] <= UPPER]
    right = {name: found.correct for name, found in answers.items()}
    _, unit = np.unique(unit, return_inverse=True)
    units = int(unit.max()) + 1
    part = (np.random.default_rng(seed).permutation(units) % min(PARTS, units))[unit]
    nested = {name: _nested(right, some, part) for name, some in (("cut", earlier), ("low", low))}
    accuracies = means(_table([*right.values(), *nested.values()]), unit, (0, 1), seed)
    others = [*nested.values()] + ([] if joined is None else [joined.correct])
    gains = means(_table(others) - right[last][:, None], unit, (-1, 1), seed)
    profile = dict(zip(answers, accuracies, strict=False))

    def cut(some: list[str], i: int) -> Cut:
        best = max(some, key=lambda name: profile[name].value)  # of equals the shallower
        return Cut(best, accuracies[len(profile) + i], gains[i])

    return Similarity(
        profile=profile,
        depths=depths,
        last=last,
        cut=cut(earlier, 0),
        lower=cut(low, 1) if low else None,
        joined=None if joined is None else gains[2],
        losses={
            name: found.calibrated_log_loss
            for name, found in [*answers.items(), *([] if joined is None else [("", joined)])]
        },
        images=len(unit),
        units=units,
    )


def _nested(right: Mapping[str, np.ndarray], some: list[str], part: np.ndarray) -> np.ndarray:
    """Which images are right if, for each part, the layer is chosen on the others: bool (n,)."""
    found = np.zeros(len(part), bool)
    if not some:
        return found
    correct = _table([right[name] for name in some]) > 0
    for i in range(int(part.max()) + 1):
        inside = part == i
        best = correct[~inside].mean(axis=0).argmax()
        found[inside] = correct[inside, best]
    return found


def _table(columns: list[np.ndarray]) -> np.ndarray:
    return np.stack(columns, axis=1).astype(float)


def _times(found: Estimate, threshold: float) -> float:
    """How many times as many images would take a threshold out of an interval: 1 if it is out."""
    if not found.low <= threshold <= found.high:
        return 1.0
    away = abs(found.value - threshold)
    return ((found.high - found.low) / 2 / away) ** 2 if away else math.inf


def _rounded(number: float) -> int:
    """Two digits are as much as can be said of it."""
    step: int = 10 ** max(0, len(str(int(number))) - 2)
    return math.ceil(number / step) * step
