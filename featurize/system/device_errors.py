"""What libraries say when memory ends, or when a GPU is lost: they have no types for it."""

import re

_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate"
    r"|status_alloc_failed|host_allocation_failed|statusallocfailed"
    # What cuDNN says when no algorithm fits into what is left.
    r"|unable to find an engine to execute this computation"
    r"|unable to find a valid cudnn algorithm|no valid execution plans"
    r"|errormemoryallocation|erroroutofmemory",
    re.IGNORECASE,
)
_GPU_LOST = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|illegal instruction"
    r"|misaligned address|uncorrectable ecc|launch timed out|fallen off the bus"
    r"|context is destroyed|errorillegaladdress|errordevicelost|hardware exception",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ended, on the host or on a GPU.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    bool
    """
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def is_gpu_lost(error: BaseException) -> bool:
    """Tell whether an error says that this process cannot use its GPU any more.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    bool
    """
    return _GPU_LOST.search(str(error)) is not None
