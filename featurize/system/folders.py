"""The user's folders for files that can be made again."""

import os
from pathlib import Path


def find_cache_home() -> Path:
    """Find the user's folder of caches.

    Returns
    -------
    Path
        ``XDG_CACHE_HOME``, or ``~/.cache``.

    Raises
    ------
    RuntimeError
        If the user has no home.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return cache_home if cache_home.is_absolute() else Path("~/.cache").expanduser()


def find_kernel_folder() -> Path:
    """Find the folder of the kernels that torch's compiler makes for us.

    Returns
    -------
    Path
        In the user's folder of caches. It need not exist.

    Raises
    ------
    RuntimeError
        If the user has no home.
    """
    return find_cache_home() / "headgraft" / "inductor"
