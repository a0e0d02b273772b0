"""The evidence for an advice, in sentences."""

from collections.abc import Iterator

from classify.evaluation.bootstrap import Estimate
from classify.strategy.depth_profile import (
    DIFFERENT,
    EQUAL_MARGIN,
    MIN_ERROR_REDUCTION,
    SIMILAR,
    CutCandidate,
    DepthProfile,
)
from classify.strategy.learning_curve import (
    MIN_LARGE_IMAGES,
    MIN_LARGE_PER_CLASS,
    NEAR_FACTOR,
    DatasetSize,
)

# In accuracy. If the last doubling may have gained more than this, saturation is not claimed.
NEGLIGIBLE_GAIN = 0.02


def explain_depth(
    profile: DepthProfile, given: str | None, images_needed: int | None, layer: str
) -> Iterator[str]:
    """Explain accuracy by depth, and the verdict on similarity.

    Parameters
    ----------
    profile : DepthProfile
    given : str, or None
        The similarity, if the user gave it.
    images_needed : int, or None
        Number of further images that would settle the verdict.
    layer : str
        The layer on which the strategy puts the head.

    Yields
    ------
    str
        Sentences without a full stop.
    """
    yield f"{profile.answer}: {_explain_verdict(profile)}"
    if given is not None and given != profile.answer:
        yield f"measured {profile.answer}, but {given} was given"
    elif given is None and not profile.is_confident:
        yield _explain_uncertainty(images_needed)
        similar, different = (
            100 * profile.costs_if_wrong[answer] for answer in (SIMILAR, DIFFERENT)
        )
        yield (
            f"to be wrong costs a linear probe at most {similar:.1f} points of accuracy if the "
            f"data are taken for similar, and {different:.1f} if for different"
        )
    if profile.joined_gain is not None and profile.is_joined_better(layer):
        yield (
            f"all {len(profile.accuracy_by_layer)} layers joined validate better than {layer}, and "
            f"a probe of either kind takes them: beside {profile.last_layer} "
            f"{_format_gain(profile, profile.joined_gain)}"
        )


def _explain_verdict(profile: DepthProfile) -> str:
    cut, lower = profile.cut, profile.lower_cut
    if profile.is_clear_gain(cut.gain):
        return (
            f"cut at {_format_cut(profile, cut)} it is clearly better than at "
            f"{profile.last_layer}: {_format_gain(profile, cut.gain)}"
        )
    best = (
        f"no earlier layer is clearly better than {profile.last_layer} (at least "
        f"{MIN_ERROR_REDUCTION:.0%} fewer errors, and no chance): cut at the best, "
        f"{_format_cut(profile, cut)}, {_format_gain(profile, cut.gain)}"
    )
    if lower is None:
        return best
    low = f"cut at {_format_cut(profile, lower)}, {_format_gain(profile, lower.gain)}"
    if profile.upper_layers_redundant:
        return (
            f"the upper part of the network adds nothing (a low cut has at most {EQUAL_MARGIN:.0%} "
            f"more errors): {low}"
        )
    return f"{best}; and the upper part is of use: {low}"


def _explain_uncertainty(images_needed: int | None) -> str:
    if images_needed is None:
        return (
            "this is as near to the threshold as can be: no reasonable number of images would "
            "tell, and either strategy will do about as well"
        )
    return f"the intervals are too wide to be sure; about {images_needed:,} more images would do"


def explain_size(dataset_size: DatasetSize, given: str | None) -> Iterator[str]:
    """Explain the counts and the learning curve.

    Parameters
    ----------
    dataset_size : DatasetSize
    given : str, or None
        The size, if the user gave it.

    Yields
    ------
    str
        Sentences without a full stop.
    """
    smallest, median = dataset_size.images_per_class
    yield (
        f"{dataset_size.verdict}: {dataset_size.n_images:,} images to learn from, {median:,.0f} of "
        f"a class (the smallest: {smallest:,}); large begins at {MIN_LARGE_IMAGES:,}, and "
        f"{MIN_LARGE_PER_CLASS} of a class"
    )
    if given is not None and given != dataset_size.verdict:
        yield f"counted {dataset_size.verdict}, but {given} was given"
    elif given is None and dataset_size.is_near_threshold:
        yield (
            f"that is within a factor of {NEAR_FACTOR} of where large begins: the neighbouring "
            "strategy is worth a try"
        )
    change = f"brought {_format_points(dataset_size.last_doubling_gain)}"
    if dataset_size.is_gaining:
        yield (
            f"the head still gains from images: the last doubling {change}, twice as many "
            f"would bring about {100 * dataset_size.next_doubling_gain:+.1f}"
        )
    elif dataset_size.last_doubling_gain.high > NEGLIGIBLE_GAIN:
        yield f"whether the head still gains from images cannot be told: the last doubling {change}"
    else:
        yield (
            f"the head has stopped gaining from images: the last doubling {change}; more "
            "is to be had from the features than from further images"
        )


def _format_cut(profile: DepthProfile, cut: CutCandidate) -> str:
    return f"{cut.layer} ({profile.depths.relative[cut.layer]:.0%} of the depth)"


def _format_gain(profile: DepthProfile, gain: Estimate) -> str:
    reduction = profile.error_reduction(gain)
    fewer_or_more = "fewer" if reduction >= 0 else "more"
    return f"{abs(reduction):.0%} {fewer_or_more} errors, {_format_points(gain)}"


def _format_points(difference: Estimate) -> str:
    """Format a difference of accuracies in percentage points."""
    value, low, high = (100 * end for end in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points of accuracy (95 % interval {low:+.1f} to {high:+.1f})"
