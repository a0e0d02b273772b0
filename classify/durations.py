"""How long something may take, as people write it."""

import re

from classify.errors import CallError

_SECONDS_PER_UNIT = {"h": 3600, "m": 60, "s": 1}


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
