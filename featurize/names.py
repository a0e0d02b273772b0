"""Help with names that were mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)``, or nothing where nothing known is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_file(text: str) -> bool:
    """Whether what was given for a backbone or for weights means a local file."""
    return text.endswith((".safetensors", ".pth", ".pt")) or "/" in text
