"""Groups that names of images suggest: common stems, numbered bursts, times.

A rule only suggests. Whether images that it links are alike beyond chance is measured elsewhere.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np

MAX_GAP_SECONDS = 10  # between two images of one burst
MAX_NAME_CHARS = 200  # of a name that is looked at; rules see its end
_LAST_PART = re.compile(r"^(.*[^\W_].*?)[-_. ]+([^\W_]+)$")
_NUMBERED = re.compile(r"^(.*?)(\d{1,9})$")
_TIME = re.compile(r"(?<!\d)((?:19|20)\d{6})[-_T ]?(\d{6})(?!\d)")

STEM, FOLDERS, NUMBERS, TIMES = "stem", "same name", "numbers", "times"
DESCRIPTIONS = {
    STEM: "names with one stem",
    FOLDERS: "the same name in several folders",
    NUMBERS: "numbers that follow each other",
    TIMES: f"times at most {MAX_GAP_SECONDS} seconds apart",
}


@dataclass(frozen=True, eq=False)
class NameRule:
    """What one rule suggests.

    Attributes
    ----------
    name : str
        A key of `DESCRIPTIONS`.
    links : int array of shape (p, 2)
        Positions of pairs of images that belong together.
    is_chain : bool
        Whether each pair is to be checked by itself, as numbers go on from one scene to the next.
    """

    name: str
    links: np.ndarray
    is_chain: bool


def suggest_groups(paths: Sequence[str]) -> list[NameRule]:
    """List what every rule suggests of some names.

    Parameters
    ----------
    paths : sequence of str
        n paths of images.

    Returns
    -------
    list of NameRule
        Those that link any images and do not link most of them into one group.
    """
    names = [PurePosixPath(path) for path in paths]
    stems = [name.stem[-MAX_NAME_CHARS:] for name in names]
    folders = [str(name.parent) for name in names]
    rules = [
        NameRule(STEM, _link_equal(_iter_stem_keys(folders, stems)), False),
        NameRule(FOLDERS, _link_equal(enumerate(stems)), False),
        NameRule(NUMBERS, _link_numbers(folders, stems), True),
        NameRule(TIMES, _link_times(folders, stems), True),
    ]
    return [rule for rule in rules if len(rule.links)]


def _iter_stem_keys(
    folders: Sequence[str], stems: Sequence[str]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield the folder and the name without its last part, where it has one."""
    for i, (folder, stem) in enumerate(zip(folders, stems, strict=True)):
        if found := _LAST_PART.match(stem):
            yield i, (folder, found.group(1))


def _link_equal(keys: "Iterator[tuple[int, object]] | enumerate[str]") -> np.ndarray:
    """Link each position to the one before it of the same key; too large groups are left out."""
    members: dict[object, list[int]] = defaultdict(list)
    count = 0
    for i, key in keys:
        members[key].append(i)
        count += 1
    links = [
        pair
        for group in members.values()
        if 1 < len(group) <= max(2, count // 4)
        for pair in pairwise(group)
    ]
    return np.array(links, np.int64).reshape(-1, 2)


def _link_numbers(folders: Sequence[str], stems: Sequence[str]) -> np.ndarray:
    sequences: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for i, (folder, stem) in enumerate(zip(folders, stems, strict=True)):
        if found := _NUMBERED.match(stem):
            sequences[folder, found.group(1)].append((int(found.group(2)), i))
    return _link_neighbours(sequences.values(), 1)


def _link_times(folders: Sequence[str], stems: Sequence[str]) -> np.ndarray:
    sequences: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, (folder, stem) in enumerate(zip(folders, stems, strict=True)):
        found = _TIME.search(stem)
        if found is None:
            continue
        try:
            when = datetime.strptime("".join(found.groups()), "%Y%m%d%H%M%S")
        except ValueError:  # digits that are no time
            continue
        sequences[folder].append((int((when - datetime(1900, 1, 1)).total_seconds()), i))
    return _link_neighbours(sequences.values(), MAX_GAP_SECONDS)


def _link_neighbours(sequences: Iterable[list[tuple[int, int]]], gap: int) -> np.ndarray:
    """Link positions whose numbers are at most so far apart."""
    links = []
    for sequence in sequences:
        ordered = sorted(sequence)
        for (number, i), (following, j) in pairwise(ordered):
            if following - number <= gap:
                links.append((i, j))
    return np.array(links, np.int64).reshape(-1, 2)
