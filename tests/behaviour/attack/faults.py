"""Which system calls are made to fail, and how: what `faults.c` is armed with."""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DELAY_ONLY, SHORT = -1, 0


@dataclass(frozen=True)
class Fault:
    """One call, or some in a row, fail.

    Attributes
    ----------
    call : str
        pwrite, write, fdatasync, fsync, rename, posix_fallocate, open, pread, read, flock, fork.
    error : int
        The errno; `SHORT` for half of what was asked for, `DELAY_ONLY` for a delay alone.
    first, count : int
        The number of the first such call that fails, from 1, and how many do.
    """

    call: str
    error: int
    first: int = 1
    count: int = 1
    delay_ms: int = 0

    def __str__(self) -> str:
        kind = {DELAY_ONLY: f"{self.delay_ms}ms", SHORT: "short"}.get(self.error)
        return f"{self.call}-{kind or errno.errorcode[self.error]}-{self.first}x{self.count}"

    def below(self, folder: Path) -> dict[str, Any]:
        """As the starter takes it: calls on files of this folder count."""
        return {
            **{"below": str(folder), "call": self.call, "errno": self.error},
            **{"first": self.first, "count": self.count, "delay_ms": self.delay_ms},
        }


ALWAYS = 1_000_000
PLAN = {
    "pwrite": (("ENOSPC", "EIO", "EDQUOT"), (1, 30, 60)),
    "fdatasync": (("EIO", "ENOSPC"), (1, 2)),
    "fsync": (("EIO", "ENOSPC"), (1, 2)),
    "rename": (("EIO", "EROFS", "ENOSPC"), (1,)),
    "posix_fallocate": (("ENOSPC", "EIO", "EDQUOT"), (1,)),
    "open": (("EMFILE", "EIO", "EROFS", "EINTR"), (1, 3, 8, 30)),
    "pread": (("EIO",), (1, 30, 60)),
    "read": (("EIO", "EINTR"), (1, 30)),
    "write": (("ENOSPC",), (1,)),
    "flock": (("ENOLCK", "EWOULDBLOCK", "EINTR"), (1,)),
}
FAULTS = [
    Fault(call, getattr(errno, error), first)
    for call, (errors, firsts) in PLAN.items()
    for error in errors
    for first in firsts
]
# A disk that stays broken, and one that does half of everything.
FAULTS += [Fault("pwrite", errno.EIO, 10, ALWAYS), Fault("fdatasync", errno.EIO, 1, ALWAYS)]
FAULTS += [Fault(call, SHORT, 1, ALWAYS) for call in ("pwrite", "pread", "read", "write")]
