"""Text from strangers, made safe for a terminal."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from featurize.errors import CallError

_SECONDS_PER_UNIT = {"h": 3600, "m": 60, "s": 1}

# Control characters, DEL, the other line ends, and what turns the direction of writing around.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
MAX_PRINTED_CHARS = 300


def to_printable(text: object, limit: int = MAX_PRINTED_CHARS) -> str:
    """Text of a stranger as it may go to a terminal: on one line, of bounded length, no escapes.

    Names of files, classes and backbones come from other people's disks. A terminal takes
    some bytes for orders: to set its title, to move up a line, to write backwards.

    Parameters
    ----------
    text : object
        Anything; ``str`` is taken of it.
    limit : int
        Characters; the middle of a longer text is left out.

    Returns
    -------
    str
        Control characters, line ends and marks of direction as ``\\x1b`` or ``\\u202e``.
    """
    text = str(text)
    if len(text) > limit:
        head = limit * 2 // 3
        text = f"{text[:head]}...{text[len(text) - (limit - head) :]}"
    return _UNSAFE.sub(lambda found: _escape_char(found.group()), text)


def escape_unsafe_json(document: str) -> str:
    """Escape in a JSON document what a terminal would obey; it means the same as before."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", document)


def _escape_char(character: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    code = ord(character)
    return known.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def format_bytes(n_bytes: float) -> str:
    """Bytes as people write them: ``3.2 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def list_first(names: Sequence[object]) -> str:
    """Quote the first three names; an ellipsis stands for the others."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def is_invisible(character: str) -> bool:
    """Whether a character shows as nothing at all: a zero-width space, a mark of direction."""
    return unicodedata.category(character) in ("Cf", "Cc")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where nothing known is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def format_duration(seconds: float | None) -> str:
    """``2:05:09``, ``5:09`` or ``9 s``; a dash where unknown."""
    if seconds is None:
        return "-"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def parse_duration(text: str | None) -> float | None:
    """``90``, ``90s``, ``30m`` or ``1h30m`` as seconds; None where nothing is given.

    Raises
    ------
    CallError
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise CallError(f"a time is written as 90s, 30m or 1h30m, not {text!r}")
    return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)
