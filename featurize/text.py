"""Text from strangers, made safe for a terminal."""

import re
import unicodedata

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


def is_invisible(character: str) -> bool:
    """Whether a character shows as nothing at all: a zero-width space, a mark of direction."""
    return unicodedata.category(character) in ("Cf", "Cc")
