"""Let the C library keep freed memory for the next layer."""

import ctypes
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in <malloc.h>
MOST = 1 << 30  # bytes; a block above that goes back at once, as before


def keep() -> None:
    """Ask glibc to hold on to large blocks that are freed, for this process.

    By itself it hands blocks of many megabytes back to the system, and fetches them anew for every
    layer of every batch, zeroed page by page: that can take as long as the arithmetic. The most
    that is held is what was in use at once. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no such call
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, MOST)
            libc.mallopt(_TRIM_THRESHOLD, MOST)
