"""Short names of caches, by their paths."""

import re
from collections.abc import Sequence
from pathlib import Path

from classify.errors import CallError


def name_caches(paths: Sequence[Path]) -> list[str]:
    """Name files by their stems, with as many folders before them as tell them apart.

    What separates words of an option (comma, plus, colon, space) becomes an underscore.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of str
        All different.

    Raises
    ------
    CallError
        If a file is given twice.
    """
    resolved = [path.resolve() for path in paths]
    repeated = [str(path) for path in paths if resolved.count(path.resolve()) > 1]
    if repeated:
        raise CallError(f"the same cache is given twice: {', '.join(dict.fromkeys(repeated))}")
    names = [_shorten_path(path, 1) for path in resolved]
    for depth in range(2, max(len(path.parts) for path in resolved) + 1):
        shared = {name for name in names if names.count(name) > 1}
        names = [
            _shorten_path(path, depth) if name in shared else name
            for path, name in zip(resolved, names, strict=True)
        ]
    if len(set(names)) < len(names):  # they differ by their suffixes
        return [f"{number}_{name}" for number, name in enumerate(names, 1)]
    return names


def _shorten_path(path: Path, depth: int) -> str:
    return re.sub(r"[,+:\s]", "_", "/".join(path.with_suffix("").parts[-depth:]))
