"""Text of messages.

Text from outside is made safe for a terminal. Sizes, durations and lists of names are formatted,
durations are parsed, and a near match is suggested for a misspelt name.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from featurize.errors import CallError

_SECONDS_PER_UNIT = {"h": 3600, "m": 60, "s": 1}

# Control characters, DEL, Unicode line ends, and marks that reverse the direction of writing.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
MAX_PRINTED_CHARS = 300


def to_printable(text: object, limit: int = MAX_PRINTED_CHARS) -> str:
    r"""Make text safe to print on a terminal: one line of bounded length, without escapes.

    Names of files, classes and backbones come from other people's disks. A terminal obeys some
    bytes as commands: they set its title, move up a line or write backwards.

    Parameters
    ----------
    text : object
        Any object; it is converted by ``str``.
    limit : int
        Maximum number of characters; of a longer text the middle is left out.

    Returns
    -------
    str
        The text, with control characters, line ends and marks of direction written as ``\x1b`` or
        ``\u202e``.
    """
    text = str(text)
    if len(text) > limit:
        head = limit * 2 // 3
        text = f"{text[:head]}...{text[len(text) - (limit - head) :]}"
    return _UNSAFE.sub(lambda match: _escape_char(match.group()), text)


def escape_unsafe_json(document: str) -> str:
    """Escape the characters of a JSON document that a terminal would obey.

    Parameters
    ----------
    document : str
        JSON text.

    Returns
    -------
    str
        JSON text of the same value.
    """
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", document)


def _escape_char(character: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return known.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def format_bytes(n_bytes: float) -> str:
    """Format a size in decimal units: ``3.2 MB``.

    Parameters
    ----------
    n_bytes : float
        Size in bytes.

    Returns
    -------
    str
        The size in bytes, kB, MB, GB or TB (powers of 1000).
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def list_first(names: Sequence[object]) -> str:
    """Quote the first three names; an ellipsis stands for the others.

    Parameters
    ----------
    names : sequence of object
        Names, quoted by ``repr``.

    Returns
    -------
    str
        ``'a', 'b', 'c', ...``.
    """
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def format_count(number: int, noun: str, plural: str = "s") -> str:
    """Format a number of things: ``1 image``, ``2,000 images``.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        One of them.
    plural : str
        What is appended for several.

    Returns
    -------
    str
        Number and noun.
    """
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def is_invisible(character: str) -> bool:
    """Tell whether a character is not displayed: a zero-width space, a mark of direction.

    Parameters
    ----------
    character : str
        One character.

    Returns
    -------
    bool
        True for the Unicode categories Cf (format) and Cc (control).
    """
    return unicodedata.category(character) in ("Cf", "Cc")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Suggest the known name that is most similar to a misspelt one.

    Parameters
    ----------
    name : object
        The name as it was given. No text is similar to what is no text.
    known : iterable of str
        The names that exist; capital and small letters count alike.

    Returns
    -------
    str
        `` (did you mean 'NAME'?)``, to append to a message. Empty if no known name is similar.
    """
    if not isinstance(name, str):
        return ""
    by_folded = {other.casefold(): other for other in known}
    similar = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[similar[0]]!r}?)" if similar else ""


def list_choices(name: object, known: Sequence[str]) -> str:
    """List what an option takes, for the message about a word that it does not take.

    Parameters
    ----------
    name : object
        The word as it was given; files of strangers have any value in its place.
    known : sequence of str
        The words that exist.

    Returns
    -------
    str
        ``a, b, c, not 'd'``, and a suggestion if a word is similar.
    """
    return f"{', '.join(known)}, not {name!r}{did_you_mean(name, known)}"


def format_duration(seconds: float | None) -> str:
    """Format a duration: ``2:05:09``, ``5:09`` or ``9 s``.

    Parameters
    ----------
    seconds : float or None
        Duration in seconds. None means unknown.

    Returns
    -------
    str
        The duration; a dash if unknown.
    """
    if seconds is None:
        return "-"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def parse_duration(text: str | None) -> float | None:
    """Parse a duration: ``90``, ``90s``, ``30m`` or ``1h30m``.

    Parameters
    ----------
    text : str or None
        The duration as a user wrote it. A number without a unit is in seconds.

    Returns
    -------
    float or None
        Duration in seconds; None if `text` is None.

    Raises
    ------
    CallError
        If the text is not a duration.
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise CallError(f"a time is written as 90s, 30m or 1h30m, not {text!r}")
    return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)
