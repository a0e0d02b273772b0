"""Which split a file holds, by its name."""

import re
from pathlib import PurePosixPath

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
