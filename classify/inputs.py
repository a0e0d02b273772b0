"""What an estimator on image paths is given, checked."""

from typing import Any

import numpy as np

from classify.errors import CallError, TooFewImages


def paths_of(X: Any) -> np.ndarray:
    """Image paths: object (n,), from an array of texts of shape (n,) or (n, 1).

    Raises
    ------
    CallError
    """
    paths = np.asarray(X, object)
    if paths.ndim != 1 and paths.shape[1:] != (1,):
        raise CallError(f"X is one path for each image, shape (n,), not {paths.shape}")
    paths = paths.ravel()
    if not all(isinstance(path, str) for path in paths):
        raise CallError("X is image paths, as text")
    return paths


def numbered(groups: Any) -> np.ndarray | None:
    """Groups of any kind as numbers: int (n,), or None."""
    return None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def check_classes(numbers: np.ndarray, names: np.ndarray) -> None:
    """Refuse what cannot be both learnt and validated.

    Parameters
    ----------
    numbers : int array of shape (n,)
        Class numbers.
    names : array of shape (K,)

    Raises
    ------
    TooFewImages
        If there is one class only, or a class has a single image.
    """
    counts = np.bincount(numbers)
    if len(counts) < 2:
        raise TooFewImages(
            f"every training image has the label {str(names[0])!r}; "
            "a classifier needs at least two classes"
        )
    if (counts < 2).any():
        rare = [repr(str(names[k])) for k in np.flatnonzero(counts < 2)]
        raise TooFewImages(
            f"{len(rare)} of {len(counts)} classes have one training image only "
            f"({', '.join(rare[:3])}); to train on and to validate by takes two each: add "
            "images, or take these classes out of the labels"
        )


def check_validation(numbers: np.ndarray, validation: np.ndarray, names: np.ndarray) -> None:
    """Refuse a validation part, bool (n,), that is empty or takes all there is of a class.

    Raises
    ------
    TooFewImages
    """
    if not validation.any():
        raise TooFewImages(
            "nothing can be held out to decide when to stop; add images, or mark some as val in a "
            "split column"
        )
    bare = np.setdiff1d(numbers, numbers[~validation])
    if len(bare):
        raise TooFewImages(
            f"class {str(names[bare[0]])!r} has validation images only; give it some to train on"
        )
