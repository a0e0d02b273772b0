"""Names with braces, ``shard-{000..063}.tar``, and with stars, ``*.tar``."""

import itertools
import math
import re

from featurize.errors import CallError

MAX_NAMES = 1_000_000
MAX_TOTAL_CHARS = 256_000_000  # of all names together

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def has_braces(text: str) -> bool:
    """Tell whether a text has braces that stand for several names.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool
    """
    return any("," in inner or ".." in inner for inner in _BRACES.findall(text))


def has_stars(text: str) -> bool:
    """Tell whether a text is a glob.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool
    """
    return re.search(r"[*?]|\[[^\]]+\]", text) is not None


def expand_braces(text: str) -> list[str]:
    """Expand braces as a shell does: ``{000..063}`` to numbers, ``{a,b}`` to each of these.

    Several braces give all combinations. Braces with neither stay as they are. None lie in others.

    Parameters
    ----------
    text : str

    Returns
    -------
    list of str
        In order; the text itself if there is nothing to expand.

    Raises
    ------
    CallError
        If there are more than `MAX_NAMES`.
    """
    pieces: list[range | list[str]] = []
    widths: list[int] = []
    end = 0
    for match in _BRACES.finditer(text):
        choices, width = _list_choices(match[1])
        if choices is not None:
            pieces += [[text[end : match.start()]], choices]
            widths += [0, width]
            end = match.end()
    pieces.append([text[end:]])
    widths.append(0)
    count = math.prod(map(len, pieces))
    if count > MAX_NAMES or count * len(text) > MAX_TOTAL_CHARS:
        raise CallError(f"braces stand for at most {MAX_NAMES:,} names, not {count:,}")
    columns = [
        [str(choice).zfill(width) for choice in choices]
        for choices, width in zip(pieces, widths, strict=True)
    ]
    return ["".join(parts) for parts in itertools.product(*columns)]


def _list_choices(inner: str) -> tuple[range | list[str] | None, int]:
    """List what braces stand for, and how many digits a number has at least."""
    match = _RANGE.fullmatch(inner)
    if match is not None:
        first, last = match.groups()
        is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if is_padded else 0
        return range(int(first), int(last) + step, step), width
    if ".." in inner and "," not in inner:
        raise CallError(f"braces with a range are written {{000..063}}, not {{{inner[:40]}}}")
    return (inner.split(","), 0) if "," in inner else (None, 0)


def split_pattern(path: str) -> tuple[str, str]:
    """Split a path where its first part with braces or stars begins.

    Parameters
    ----------
    path : str

    Returns
    -------
    folder, pattern : str
        `pattern` is empty if there is none.
    """
    parts = path.split("/")
    for i, part in enumerate(parts):
        if has_braces(part) or has_stars(part):
            return "/".join(parts[:i]), "/".join(parts[i:])
    return path, ""
