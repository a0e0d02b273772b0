"""Select images by globs over their keys, and by split."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from featurize.errors import CallError, NoImagesError
from featurize.sources.listing import ImageListing
from featurize.text import to_printable

MAX_PATTERNS = 1000
MAX_PATTERN_CHARS = 4096  # as for a path

_PartMatcher = Callable[[str], Any] | None  # None stands for **


def check_patterns(patterns: Iterable[str], option: str) -> tuple[str, ...]:
    """Check that globs are valid.

    Parameters
    ----------
    patterns : iterable of str, or str
        The globs; a single string counts as one glob.
    option : str
        Name of the option, for the message.

    Returns
    -------
    tuple of str
        The globs, unchanged.

    Raises
    ------
    CallError
        If there are too many globs, or one is invalid.
    """
    checked = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if len(checked) > MAX_PATTERNS:
        raise CallError(f"{option}: {len(checked):,} patterns are more than {MAX_PATTERNS:,}")
    for pattern in checked:
        if not isinstance(pattern, str) or not pattern or len(pattern) > MAX_PATTERN_CHARS:
            raise CallError(
                f"{option}: a pattern is 1 to {MAX_PATTERN_CHARS} characters, not {pattern!r:.80}"
            )
        if "\0" in pattern or pattern.startswith("/") or pattern.endswith("/"):
            raise CallError(
                f"{option} {pattern!r}: a pattern is matched with paths below the image folder, as "
                "in masks/**, so it neither begins nor ends with /"
            )
        if {"", ".", ".."} & set(pattern.split("/")):
            raise CallError(f"{option} {pattern!r}: no path below the image folder has such parts")
    return checked


class GlobFilter:
    """A filter of images by include and exclude globs.

    A pattern is compared with an image's path relative to the folder, part by part between the
    ``/``. ``*`` is any run of characters, ``?`` is any one character, ``[abc]`` is one of these
    and ``[!abc]`` is one of the others; none of them matches a ``/``. A part ``**`` is any number
    of folders, including none. A pattern without ``/`` is compared with the image's name alone, in
    any folder. Matching is case-sensitive. There is no escape character: ``[*]`` is a star.

    An image is selected if it matches an include pattern, or there are none, and it matches no
    exclude pattern.

    Parameters
    ----------
    include, exclude : iterable of str
        The patterns.

    Attributes
    ----------
    include, exclude : tuple of str
        The patterns, checked.
    matched : set of str
        The patterns that have matched an image so far.

    Raises
    ------
    CallError
        If a pattern is invalid.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.include = check_patterns(include, "--include")
        self.exclude = check_patterns(exclude, "--exclude")
        self.matched: set[str] = set()
        self._include = [(pattern, _compile_parts(pattern)) for pattern in self.include]
        self._exclude = [(pattern, _compile_parts(pattern)) for pattern in self.exclude]

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def accepts(self, path: str) -> bool:
        """Tell whether an image is selected.

        The pattern that decides is added to `matched`.

        Parameters
        ----------
        path : str
            POSIX path of the image, relative to the folder.

        Returns
        -------
        bool
            Whether it is selected.
        """
        parts = path.split("/")
        if self.include and not self._match_any(self._include, parts):
            return False
        return not self._match_any(self._exclude, parts)

    def describe_unmatched(self, where: str) -> list[str]:
        """Describe the patterns that have matched no image so far.

        Parameters
        ----------
        where : str
            The source.

        Returns
        -------
        list of str
            A sentence for each.
        """
        return [
            f"the pattern {to_printable(pattern)!r} matches no image in {where}"
            for pattern in (*self.include, *self.exclude)
            if pattern not in self.matched
        ]

    def _match_any(self, patterns: list[tuple[str, list[_PartMatcher]]], parts: list[str]) -> bool:
        for pattern, matchers in patterns:
            if _match_parts(matchers, parts if len(matchers) > 1 else parts[-1:]):
                self.matched.add(pattern)
                return True
        return False


def _compile_parts(pattern: str) -> list[_PartMatcher]:
    return [
        None if part == "**" else re.compile(fnmatch.translate(part)).match
        for part in pattern.split("/")
    ]


def _match_parts(matchers: list[_PartMatcher], parts: list[str]) -> bool:
    """Match part by part; a ``**`` takes as few folders as possible, and more if that fails."""
    i_matcher = i_part = 0
    i_star, i_resume = -1, 0
    while i_part < len(parts):
        if i_matcher < len(matchers) and matchers[i_matcher] is None:
            i_star, i_resume = i_matcher, i_part
            i_matcher += 1
        elif i_matcher < len(matchers) and matchers[i_matcher](parts[i_part]):  # type: ignore[misc]
            i_matcher += 1
            i_part += 1
        elif i_star >= 0:
            i_resume += 1
            i_matcher, i_part = i_star + 1, i_resume
        else:
            return False
    return all(part is None for part in matchers[i_matcher:])


def select_images(
    listing: ImageListing, include: Iterable[str], exclude: Iterable[str], keep: np.ndarray
) -> ImageListing:
    """Select images of a listing by globs, and say which globs match none.

    Parameters
    ----------
    listing : ImageListing
        Of all images.
    include, exclude : iterable of str
        The globs.
    keep : bool array of shape (N,)
        Images that are selected otherwise.

    Returns
    -------
    ImageListing
        Of those left.

    Raises
    ------
    CallError
        If a glob is invalid, or no image is left.
    """
    patterns = GlobFilter(include, exclude)
    if patterns:
        accepted = np.fromiter(map(patterns.accepts, listing.paths), bool, len(listing.paths))
        if not (keep & accepted).any():
            raise NoImagesError(
                f"none of the {keep.sum():,} images in {listing.root} is left by --include and "
                "--exclude"
            )
        keep = keep & accepted
    listing = replace(
        listing,
        skipped=[*listing.skipped, *patterns.describe_unmatched(listing.root)],
        include=patterns.include,
        exclude=patterns.exclude,
    )
    if keep.all():
        return listing
    rows, places = np.flatnonzero(keep), listing.places
    numbers = rows.tolist()
    return replace(
        listing,
        paths=[listing.paths[row] for row in numbers],
        sizes=listing.sizes[rows],
        stamps=listing.stamps[rows],
        places=None
        if places is None
        else replace(places, container_of=places.container_of[rows], offsets=places.offsets[rows]),
        addresses=None
        if listing.addresses is None
        else [listing.addresses[row] for row in numbers],
        columns={name: [texts[row] for row in numbers] for name, texts in listing.columns.items()},
    )
