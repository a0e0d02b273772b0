"""The evidence for an advice, in sentences."""

from collections.abc import Iterator

from classify.resampling import Estimate
from classify.similarity import DIFFERENT, MARGIN, SAVED, SIMILAR, Cut, Similarity
from classify.size import IMAGES, NEAR, PER_CLASS, Size

TELLING = 0.02  # a doubling that may have brought so much is no sign that nothing is to be gained


def of_depth(found: Similarity, given: str | None, more: int | None, layer: str) -> Iterator[str]:
    """What accuracy by depth says.

    Parameters
    ----------
    given : str, or None
        The similarity that the user knows better.
    more : int, or None
        Images that would make it sure.
    layer : str
        Where the strategy puts the head.
    """
    yield f"{found.answer}: {_verdict(found)}"
    if given is not None and given != found.answer:
        yield f"measured {found.answer}, but {given} was given"
    elif given is None and not found.confident:
        yield _unsure(more)
        similar, different = (100 * found.costs[answer] for answer in (SIMILAR, DIFFERENT))
        yield (
            f"to be wrong costs a linear probe at most {similar:.1f} points of accuracy if the "
            f"data are taken for similar, and {different:.1f} if for different"
        )
    if found.joined is not None and found.joined_beats(layer):
        yield (
            f"all {len(found.profile)} layers joined validate better than {layer}, and a probe of "
            f"either kind takes them: beside {found.last} {_gain(found, found.joined)}"
        )


def _verdict(found: Similarity) -> str:
    cut, lower = found.cut, found.lower
    if found.clear(cut.gain):
        return (
            f"cut at {_place(found, cut)} it is clearly better than at {found.last}: "
            f"{_gain(found, cut.gain)}"
        )
    best = (
        f"no earlier layer is clearly better than {found.last} (at least {SAVED:.0%} fewer errors, "
        f"and no chance): cut at the best, {_place(found, cut)}, {_gain(found, cut.gain)}"
    )
    if lower is None:
        return best
    low = f"cut at {_place(found, lower)}, {_gain(found, lower.gain)}"
    if found.idle:
        return (
            f"the upper part of the network adds nothing (a low cut has at most {MARGIN:.0%} more "
            f"errors): {low}"
        )
    return f"{best}; and the upper part is of use: {low}"


def _unsure(more: int | None) -> str:
    if more is None:
        return (
            "this is as near to the threshold as can be: no reasonable number of images would "
            "tell, and either strategy will do about as well"
        )
    return f"the intervals are too wide to be sure; about {more:,} more images would do"


def of_size(found: Size, given: str | None) -> Iterator[str]:
    """What the counts and the learning curve say; `given` is a size the user knows better."""
    yield (
        f"{found.verdict}: {found.images:,} images to learn from, {found.per_class[1]:,.0f} of a "
        f"class (the smallest: {found.per_class[0]:,}); large begins at {IMAGES:,}, and "
        f"{PER_CLASS} of a class"
    )
    if given is not None and given != found.verdict:
        yield f"counted {found.verdict}, but {given} was given"
    elif given is None and found.near:
        yield (
            f"that is within a factor of {NEAR} of where large begins: the neighbouring strategy "
            "is worth a try"
        )
    change = f"brought {_points(found.doubling)}"
    if found.gaining:
        yield (
            f"the head still gains from images: the last doubling {change}, twice as many "
            f"would bring about {100 * found.next_doubling:+.1f}"
        )
    elif found.doubling.high > TELLING:
        yield f"whether the head still gains from images cannot be told: the last doubling {change}"
    else:
        yield (
            f"the head has stopped gaining from images: the last doubling {change}; more "
            "is to be had from the features than from further images"
        )


def _place(found: Similarity, cut: Cut) -> str:
    return f"{cut.layer} ({found.depths.share[cut.layer]:.0%} of the depth)"


def _gain(found: Similarity, gain: Estimate) -> str:
    saved = found.saved(gain)
    return f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} errors, {_points(gain)}"


def _points(found: Estimate) -> str:
    """A difference of accuracies, in points of a hundred."""
    value, low, high = (100 * end for end in (found.value, found.low, found.high))
    return f"{value:+.1f} points of accuracy (95 % interval {low:+.1f} to {high:+.1f})"
