"""Which labelled images a network is trained on, and which decide when it stops."""

from typing import Any

import numpy as np

from classify.errors import CallError, TooFewImagesError
from classify.data.splits import hold_out

VALIDATION_FRACTION = 0.1  # of the images, for the early stop


def split_validation(
    y: np.ndarray, classes: list[str], groups: Any, validation: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Settle the validation part: what the user marked, or a tenth of every class.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    classes : list of str
    groups : array of shape (n,), or None
        Images of one group stay on one side.
    validation : bool array of shape (n,), or None
        The user's own choice.
    seed : int

    Returns
    -------
    training, validation : bool arrays of shape (n,)

    Raises
    ------
    CallError
        If `groups` or `validation` is of another length.
    TooFewImages
        If there is one class only, a class has one image, or a side lacks what it needs.
    """
    for what, given in (("groups", groups), ("validation", validation)):
        if given is not None and len(given) != len(y):
            raise CallError(f"{len(given):,} {what} do not go with {len(y):,} labels")
    _check_classes(y, classes)
    if validation is not None:
        held = np.asarray(validation, bool)
    else:
        numbers = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        held = hold_out(y, VALIDATION_FRACTION, seed, numbers)
    if not held.any():
        raise TooFewImagesError(
            "nothing can be held out to decide when to stop; add images, or mark some as val "
            "in a split column"
        )
    absent = np.setdiff1d(np.arange(len(classes)), y[~held])
    if len(absent):
        raise TooFewImagesError(
            f"class {classes[absent[0]]!r} has validation images only; give it some to train on"
        )
    return ~held, held


def _check_classes(y: np.ndarray, classes: list[str]) -> None:
    if len(classes) < 2:
        found = f"every training image has the label {classes[0]!r}" if classes else "no images"
        raise TooFewImagesError(f"{found}; a classifier needs at least two classes")
    counts = np.bincount(y)
    if (counts < 2).any():
        rare = [repr(classes[k]) for k in np.flatnonzero(counts < 2)]
        raise TooFewImagesError(
            f"{len(rare)} of {len(counts)} classes have one training image only "
            f"({', '.join(rare[:3])}); to train on and to validate by takes two each: add "
            "images, or take these classes out of the labels"
        )
