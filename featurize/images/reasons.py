"""Reasons why an image failed: codes of the cache's `reason` column (docs/cache-format.md)."""

OK = 0
EMPTY, NOT_AN_IMAGE, DAMAGED, TOO_LARGE, UNSUPPORTED, NOT_A_FILE = 1, 2, 3, 4, 5, 6
NO_PERMISSION, READ_ERROR, VANISHED = 7, 8, 9
NOT_FINITE = 10
NO_MEMORY = 11
ENDED_PROCESS = 12
TOOK_WORKER = 13
REASONS = {
    EMPTY: "empty file",
    NOT_AN_IMAGE: "not an image",
    DAMAGED: "truncated or damaged",
    TOO_LARGE: "too large",
    UNSUPPORTED: "unsupported pixel format",
    NOT_A_FILE: "not a regular file",
    NO_PERMISSION: "permission denied",
    READ_ERROR: "read error",
    VANISHED: "vanished while running",
    NOT_FINITE: "features are not finite",
    NO_MEMORY: "not enough memory",
    ENDED_PROCESS: "ended the process that decoded it",
    TOOK_WORKER: "took its worker down",
}
# Caused by the system rather than by the file: every run tries such images again.
TRANSIENT = frozenset({NO_PERMISSION, READ_ERROR, VANISHED, NO_MEMORY, TOOK_WORKER})
