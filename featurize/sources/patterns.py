"""Which images of a folder count: globs over their paths."""

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

from featurize.errors import CallError

MAX_PATTERNS = 1000
MAX_PATTERN_CHARS = 4096  # characters, as of a path

_PartMatcher = Callable[[str], Any] | None  # None stands for **


def check_patterns(patterns: Iterable[str], option: str) -> tuple[str, ...]:
    """Globs, or an error that says what is wrong.

    Parameters
    ----------
    patterns : iterable of str
    option : str
        What they are called in the error: the option.

    Raises
    ------
    CallError
    """
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if len(found) > MAX_PATTERNS:
        raise CallError(f"{option}: {len(found):,} patterns are more than {MAX_PATTERNS:,}")
    for pattern in found:
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
    return found


class GlobFilter:
    """Include and exclude globs, as one question: does this image count?

    A pattern is compared with an image's path relative to the folder, part by part between the
    ``/``: ``*`` is any run of characters, ``?`` any one character, ``[abc]`` one of these and
    ``[!abc]`` one of the others; none of them is a ``/``. A part ``**`` is any number of folders,
    also none. A pattern without ``/`` is compared with the image's name alone too, in whatever
    folder. Capitals count. There is no escape character: ``[*]`` is a star.

    An image counts where it matches one of `include`, or there are none, and none of `exclude`.

    Parameters
    ----------
    include, exclude : iterable of str

    Attributes
    ----------
    matched : set of str
        The patterns that matched something so far.

    Raises
    ------
    CallError
        If one cannot be a pattern.
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
        """Whether the image at this path, relative to the folder, counts."""
        parts = path.split("/")
        if self.include and not self._match_any(self._include, parts):
            return False
        return not self._match_any(self._exclude, parts)

    def _match_any(self, patterns: list[tuple[str, list[_PartMatcher]]], parts: list[str]) -> bool:
        for pattern, wanted in patterns:
            if _match_parts(wanted, parts if len(wanted) > 1 else parts[-1:]):
                self.matched.add(pattern)
                return True
        return False


def _compile_parts(pattern: str) -> list[_PartMatcher]:
    return [
        None if part == "**" else re.compile(fnmatch.translate(part)).match
        for part in pattern.split("/")
    ]


def _match_parts(matchers: list[_PartMatcher], parts: list[str]) -> bool:
    """Match part by part; a ``**`` takes as few as it can, and more where that fails."""
    at = here = 0
    star, resume = -1, 0
    while here < len(parts):
        if at < len(matchers) and matchers[at] is None:
            star, resume = at, here
            at += 1
        elif at < len(matchers) and matchers[at](parts[here]):  # type: ignore[misc]
            at += 1
            here += 1
        elif star >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return all(part is None for part in matchers[at:])
