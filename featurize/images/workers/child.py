"""What runs in a decoding process: images come through a pipe, pixels go into shared memory."""

import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from featurize.errors import ImageUnreadableError
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers.task_memory import TaskMemory
from featurize.system import memory


def worker_main(options: dict[str, Any]) -> None:
    """Run a worker process: decode the tasks that arrive on standard input, until it ends.

    Parameters
    ----------
    options : dict
        ``preprocess``, ``memory_fd``, ``turn_fd`` and ``cpu_seconds`` of the worker, as plain
        values.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    warnings.filterwarnings("ignore", module=r"PIL\.")
    memory.retain_freed_memory()
    if options["turn_fd"] is not None:
        memory.share_turn_lock(options["turn_fd"])
    if options["cpu_seconds"] is not None:
        _limit_resources(options["cpu_seconds"])
    preprocess = Preprocess.from_dict(options["preprocess"])
    task_memory = TaskMemory(preprocess.crop, options["memory_fd"])
    _reply(replies)
    while len(header := requests.read(4)) == 4:
        n_images = int.from_bytes(header)
        sizes = np.frombuffer(requests.read(8 * n_images), ">u8").tolist()
        for number, size in enumerate(sizes):
            task_memory.reasons[number] = _decode(
                requests.read(size), preprocess, task_memory.pixels[number]
            )
        _reply(replies)


def _reply(replies: Any) -> None:
    replies.write(b"\0")
    replies.flush()


def _decode(data: bytes, preprocess: Preprocess, pixels: np.ndarray) -> int:
    """Decode an image into its place; return the reason code."""
    try:
        pixels[...] = decoding.decode_image(data, preprocess)
    except ImageUnreadableError as error:
        return error.reason
    except MemoryError:
        return reasons.NO_MEMORY
    return reasons.OK


def _limit_resources(cpu_seconds: float) -> None:
    """Let the system end this process first for lack of memory, and limit its processor time."""
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        file.write("1000")
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = int(time.process_time() + cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
