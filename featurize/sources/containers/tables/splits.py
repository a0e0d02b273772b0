"""Which split a file holds, by its name; which split an image is of, by a column."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np

from featurize.errors import CallError
from featurize.sources.listing import ImageListing
from featurize.text import did_you_mean, list_first, to_printable

# As in Hugging Face's file names: https://huggingface.co/docs/hub/datasets-file-names-and-splits
SPLIT_WORDS = {"train": "train", "training": "train"}
SPLIT_WORDS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_WORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
_SHARD_NAME = re.compile(r"([\w.-]+?)-\d{5}-of-\d{5}\b")


def find_split(name: str) -> str:
    """Find which split a file holds, by its name or the folders it lies in.

    Parameters
    ----------
    name : str
        POSIX path.

    Returns
    -------
    str
        ``train``, ``val`` or ``test``, or another word of a name like ``extra-00000-of-00005``.
        Empty if the name says nothing, or more than one.
    """
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = (word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", part.lower()))
        found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if found:
            return found.pop() if len(found) == 1 else ""
    shard = _SHARD_NAME.match(path.name)
    if shard is None:
        return ""
    return path.parent.name if shard[1] == "data" else shard[1]


def to_split(word: str) -> str:
    """Convert a split's name to the one of the three it means, if any.

    Parameters
    ----------
    word : str

    Returns
    -------
    str
        ``train``, ``val`` or ``test``; others as they are.
    """
    return SPLIT_WORDS.get(word.strip().lower(), word.strip())


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
    CallError
        If there is no such column, or no such split in it.
    """
    texts = listing.columns.get("split")
    if texts is None and listing.reused:
        return np.zeros(len(listing.paths), bool)
    if texts is None:
        raise CallError(
            f"--split {split}: neither the names of files nor a column `split` say which images of "
            f"{listing.root} that is"
        )
    known = sorted(set(map(to_split, texts)) - {""})
    if to_split(split) not in known and not listing.reused:
        shown = list_first([to_printable(name, 100) for name in known]) or "none"
        raise CallError(
            f"{listing.root} has no split {split!r}, only {shown}{did_you_mean(split, known)}"
        )
    wanted = {text for text in set(texts) if to_split(text) == to_split(split)}
    return np.fromiter((text in wanted for text in texts), bool, len(texts))
