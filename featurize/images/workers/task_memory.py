"""Memory that a decoding process shares with the one that reads its pixels."""

import mmap
import os
import tempfile

import numpy as np

MAX_TASK_IMAGES = 16
MAX_TASK_BYTES = 16 << 20  # of pixels
NOT_DONE = 255  # no reason code
_PAGE = 4096


def count_task_images(crop: int) -> int:
    """Count the images that a task has at most.

    Parameters
    ----------
    crop : int
        Side of the pixels, in pixels.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, min(MAX_TASK_IMAGES, MAX_TASK_BYTES // (3 * crop**2)))


def open_shared_memory(crop: int) -> int:
    """Open memory for one task.

    It has no name, so nothing of it is left when the processes are gone, however they end. On
    Linux it is none of ``/dev/shm``, of which containers have little.

    Parameters
    ----------
    crop : int
        Side of the pixels, in pixels.

    Returns
    -------
    int
        A file descriptor.

    Raises
    ------
    OSError
        If there is none.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("headgraft-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, _PAGE + count_task_images(crop) * 3 * crop**2)
    return fd


class TaskMemory:
    """The memory of one task: a reason code and pixels for each of its images.

    Parameters
    ----------
    crop : int
        Side of the pixels, in pixels.
    fd : int
        Of `open_shared_memory`. It is not needed any more afterwards.

    Attributes
    ----------
    reasons : uint8 array of shape (n,)
        `NOT_DONE`, or a code of `featurize.images.reasons`, written after the pixels.
    pixels : uint8 array of shape (n, crop, crop, 3)
        RGB.
    """

    def __init__(self, crop: int, fd: int) -> None:
        n_images = count_task_images(crop)
        shared = mmap.mmap(fd, _PAGE + n_images * 3 * crop**2)
        self.reasons = np.frombuffer(shared, np.uint8, n_images)
        self.pixels = np.frombuffer(shared, np.uint8, offset=_PAGE).reshape(-1, crop, crop, 3)
