"""Take one split of tables and lists: by the names of files, or by a column."""

from collections.abc import Iterable, Sequence

import numpy as np

from featurize.errors import NoImagesError
from featurize.sources.containers.split_names import find_split, to_split
from featurize.sources.listing import ImageListing
from featurize.text import did_you_mean, list_first, to_printable


def select_split(names: Sequence[str], split: str | None) -> set[str]:
    """Select the files of one split by their names.

    Parameters
    ----------
    names : sequence of str
    split : str, optional

    Returns
    -------
    set of str
        All of them if none is asked for, or no name says that it is of that split.
    """
    if split is None:
        return set(names)
    return {name for name in names if is_split_by_name([name], split)} or set(names)


def is_split_by_name(names: Iterable[str], split: str) -> bool:
    """Tell whether the names of files say that all are of a split.

    Parameters
    ----------
    names : iterable of str
    split : str

    Returns
    -------
    bool
    """
    return all(find_split(name) == to_split(split) for name in names)


def is_of_split(listing: ImageListing, split: str) -> np.ndarray:
    """Tell which images are of a split by the column ``split``.

    Parameters
    ----------
    listing : ImageListing
    split : str

    Returns
    -------
    bool array of shape (N,)
        At least one is true, unless columns of some tables were not read again.

    Raises
    ------
    NoImagesError
        If there is no such column, or no such split in it.
    """
    texts = listing.columns.get("split")
    if texts is None and listing.reused:
        return np.zeros(len(listing.paths), bool)
    if texts is None:
        raise NoImagesError(
            f"--split {split}: neither the names of files nor a column `split` say which images of "
            f"{listing.root} that is"
        )
    known = sorted(set(map(to_split, texts)) - {""})
    if to_split(split) not in known and not listing.reused:
        shown = list_first([to_printable(name, 100) for name in known]) or "none"
        raise NoImagesError(
            f"{listing.root} has no split {split!r}, only {shown}{did_you_mean(split, known)}"
        )
    wanted = {text for text in set(texts) if to_split(text) == to_split(split)}
    return np.fromiter((text in wanted for text in texts), bool, len(texts))
