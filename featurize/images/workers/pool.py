"""Decode images in the threads that read them, or in one worker process per thread.

Threads hold the interpreter's lock for a part of every image. On a few cores this does not matter.
On many cores that feed one GPU the threads would wait for each other (``benchmarks/decoding.py``).
"""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers.task_memory import count_task_images
from featurize.images.workers.worker import Decoded, DecodeWorker

MIN_PROCESS_CORES = 8  # from here on threads do not use their cores fully
MIN_PROCESS_IMAGES = 10_000  # fewer are decoded before processes would have started
MAX_CLOSE_SECONDS = 0.5  # time for processes to end by themselves
# For an image that is decoded in its own process. No accepted image comes near them. The wall time
# allows for a machine that swaps or sleeps.
MAX_CPU_SECONDS, MAX_WALL_SECONDS = 120, 600


class DecoderPool:
    """A decoder for several threads at once. It starts by decoding in the threads themselves.

    Parameters
    ----------
    preprocess : Preprocess
        Size, interpolation and decode mode.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess, self._uses_processes = preprocess, False
        self._n_task_images = count_task_images(preprocess.crop)
        self._workers: list[DecodeWorker] = []
        self._idle: list[DecodeWorker] = []
        # A process ends with the thread that started it: so these threads live as long as the pool.
        self._starters: ThreadPoolExecutor | None = None
        self._lock, self._closed = threading.Lock(), False
        self._turn_file: Any = None

    def use_processes_if_worth(self, device: str, cores: int, n_left: int) -> None:
        """Decode in processes from now on if it is worth it: many cores, many images and a GPU.

        Parameters
        ----------
        device : str
            The device that runs the network, such as ``cpu`` or ``cuda``.
        cores : int
            Logical cores that this process may use.
        n_left : int
            Images that are still to be decoded.
        """
        if device != "cpu" and cores >= MIN_PROCESS_CORES and n_left >= MIN_PROCESS_IMAGES:
            self.use_processes()

    def use_processes(self) -> None:
        """Decode in processes from now on."""
        self._uses_processes = True

    @property
    def max_task_images(self) -> int:
        """How many images are decoded at a time: several where they go to a process."""
        return self._n_task_images if self._uses_processes else 1

    def decode_task(self, task: Sequence[bytes]) -> list[Decoded]:
        """Decode image files.

        An image that ends its worker process costs itself alone.

        Parameters
        ----------
        task : sequence of bytes
            Contents of at most `max_task_images` files.

        Returns
        -------
        list of uint8 arrays of shape (crop, crop, 3), or ImageUnreadableError
            RGB pixels, or why there are none.

        Raises
        ------
        FeaturizeError
            If a process cannot be started, or `close` was called.
        """
        if not self._uses_processes:
            return [self._decode_here(data) for data in task]
        decoded: list[Decoded | None] = [None] * len(task)
        while missing := [number for number, found in enumerate(decoded) if found is None]:
            results = self._decode_in_worker([task[number] for number in missing])
            for number, result in zip(missing, results, strict=True):
                decoded[number] = result
        return [found for found in decoded if found is not None]

    def _decode_here(self, data: bytes) -> Decoded:
        try:
            return decoding.decode_image(data, self._preprocess)
        except ImageUnreadableError as error:
            return error

    def _decode_in_worker(self, task: list[bytes]) -> list[Decoded | None]:
        # A process is no thread's own: the threads of a later job find it idle.
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or worker.lost:
            worker = self._start_worker()
        try:
            return worker.decode(task)
        finally:
            with self._lock:
                if worker.lost:
                    self._workers.remove(worker)
                else:
                    self._idle.append(worker)

    def _start_worker(self) -> DecodeWorker:
        with self._lock:
            self._refuse_if_closed()
            if self._turn_file is None:
                self._turn_file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the pool
            if self._starters is None:
                self._starters = ThreadPoolExecutor(thread_name_prefix="start decoding")
            starters = self._starters
            turn_fd = os.dup(self._turn_file.fileno())  # `close` may be called meanwhile
        try:
            worker = starters.submit(DecodeWorker, self._preprocess, turn_fd).result()
        finally:
            os.close(turn_fd)
        with self._lock:
            self._workers.append(worker)
            if self._closed:
                worker.close(0)
            self._refuse_if_closed()
        return worker

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise FeaturizeError("decoding has ended")

    def close(self) -> None:
        """End the processes within `MAX_CLOSE_SECONDS`, even those that are decoding an image.

        A thread that waits for such a process gets an `ImageUnreadableError`.
        """
        with self._lock:
            self._closed = True
        deadline = time.monotonic() + MAX_CLOSE_SECONDS
        for worker in list(self._workers):
            worker.close(max(0.0, deadline - time.monotonic()))
        if self._starters is not None:
            self._starters.shutdown(wait=False)
        if self._turn_file is not None:
            self._turn_file.close()


def decode_in_process(
    data: bytes,
    preprocess: Preprocess,
    cpu_seconds: float = MAX_CPU_SECONDS,
    wall_seconds: float = MAX_WALL_SECONDS,
) -> np.ndarray:
    """Decode an image in a separate process, so that a crash affects nothing else.

    This is for an image that may have ended a whole run. If memory runs out, the system ends that
    process first. Its processor time is limited.

    Parameters
    ----------
    data : bytes
        Content of an image file.
    preprocess : Preprocess
        Size, interpolation and decode mode.
    cpu_seconds : float
        Limit of processor time in seconds.
    wall_seconds : float
        Limit of wall time in seconds.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)
        RGB pixels.

    Raises
    ------
    ImageUnreadableError
        As `featurize.images.decoding.decode_image` does. If the process ends, by itself or by a
        signal, the reason is "ended the process that decoded it"; if it does not reply in time,
        "read error".
    FeaturizeError
        If the process cannot be started.
    """
    worker = DecodeWorker(preprocess, cpu_seconds=cpu_seconds)
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        worker.kill()

    timer = threading.Timer(wall_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        (decoded,) = worker.decode([data])
        if isinstance(decoded, np.ndarray):
            return decoded
        if timed_out.is_set():
            raise ImageUnreadableError(
                f"no answer within {wall_seconds:,.0f} s", reasons.READ_ERROR
            ) from decoded
        if worker.lost or decoded is None:
            raise ImageUnreadableError(
                reasons.REASONS[reasons.ENDED_PROCESS], reasons.ENDED_PROCESS
            ) from decoded
        raise decoded
    finally:
        timer.cancel()
        worker.close(0)
