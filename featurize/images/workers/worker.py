"""A decoding process, seen from the process that started it."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import numpy as np

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images import reasons
from featurize.images.preprocess import Preprocess
from featurize.images.workers.task_memory import NOT_DONE, TaskMemory, open_shared_memory

# The worker ends with its parent, from its first line on. It searches for modules only where this
# process does.
WORKER_CODE = """import os, sys
if sys.platform == "linux":
    import ctypes, signal
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        pass
    if os.getppid() != int(sys.argv[1]):
        os._exit(0)
import json
sys.path[:] = json.loads(sys.argv[2])
from featurize.images.workers.child import worker_main
worker_main(json.loads(sys.argv[3]))"""
# One process for each core is enough: libraries of arithmetic start as many threads as cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PIPE_BYTES = 1 << 20  # holds most images whole, so that this side need not wait midway


Decoded = np.ndarray | ImageUnreadableError


class DecodeWorker:
    """A process that decodes tasks, one after the other, and the images of a task in their order.

    A request is the number of images in four bytes, the length of each in eight, then the contents
    of their files. Reason codes and pixels are put into shared memory. The reply is one byte.

    Parameters
    ----------
    preprocess : Preprocess
        Size, interpolation and decode mode.
    turn_fd : int, optional
        Descriptor of a file. The process that decodes a large image holds its lock.
    cpu_seconds : float, optional
        Limit of processor time in seconds. If given, the system also ends this process first when
        memory runs out.

    Attributes
    ----------
    lost : bool
        Whether the process has ended or is about to.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        turn_fd: int | None = None,
        cpu_seconds: float | None = None,
    ) -> None:
        self.lost = False
        self._lock = threading.Lock()
        memory_fd = open_shared_memory(preprocess.crop)
        self._memory = TaskMemory(preprocess.crop, memory_fd)
        options = {
            "preprocess": preprocess.to_dict(),
            "memory_fd": memory_fd,
            "turn_fd": turn_fd,
            "cpu_seconds": cpu_seconds,
        }
        arguments = [str(os.getpid()), json.dumps(sys.path), json.dumps(options)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER_CODE, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(memory_fd,) if turn_fd is None else (memory_fd, turn_fd),
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
                # Ctrl-C is handled by the process that writes the cache; this one ends with its
                # input.
                start_new_session=True,
            )
        finally:
            os.close(memory_fd)
        self._stdin = cast(io.FileIO, self._process.stdin)
        self._stdout = cast(io.FileIO, self._process.stdout)
        _enlarge_pipe(self._stdin)
        _enlarge_pipe(self._stdout)
        if self._receive(1) != b"\0":
            self.close(0)
            raise FeaturizeError(f"a decoding process did not start: {sys.executable}")

    def decode(self, task: Sequence[bytes]) -> list[Decoded | None]:
        """Decode a task.

        Parameters
        ----------
        task : sequence of bytes
            Contents of image files, at most `count_task_images`.

        Returns
        -------
        list of uint8 arrays of shape (crop, crop, 3), ImageUnreadableError or None
            Of each image its pixels, or why it cannot be decoded. None for those that the process
            did not come to before it ended.
        """
        with self._lock:
            replied = bytearray()
            if not self.lost:
                self._memory.reasons[: len(task)] = NOT_DONE
                sizes = b"".join(len(data).to_bytes(8) for data in task)
                with suppress(BrokenPipeError):  # the process has ended: there will be no reply
                    self._send([len(task).to_bytes(4) + sizes, *task])
                replied = self._receive(1)
            codes = [NOT_DONE] * len(task)
            if not self.lost:
                codes = self._memory.reasons[: len(task)].tolist()
            decoded = [self._get_decoded(number, code) for number, code in enumerate(codes)]
            if not replied:
                self._end(0)
            first_missing = next((k for k, found in enumerate(decoded) if found is None), None)
            if first_missing is not None:
                decoded[first_missing] = ImageUnreadableError(
                    "the process that decoded it ended", reasons.READ_ERROR
                )
            return decoded

    def _get_decoded(self, number: int, code: int) -> Decoded | None:
        if code == reasons.OK:
            return np.array(self._memory.pixels[number])  # the next task takes its place
        if code == NOT_DONE:
            return None
        if code in reasons.REASONS:
            return ImageUnreadableError(reasons.REASONS[code], code)
        return ImageUnreadableError("its process gave no known reason", reasons.READ_ERROR)

    def kill(self) -> None:
        """Kill the process; a thread that waits for its reply gets an error."""
        self._process.kill()

    def close(self, timeout: float) -> None:
        """Let the process end by itself; kill it after `timeout` seconds."""
        if not self._lock.acquire(timeout=timeout):
            self.kill()
            self._lock.acquire()
            timeout = 0
        try:
            self._end(timeout)
        finally:
            self._lock.release()

    def _end(self, timeout: float) -> None:
        self.lost = True
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        if timeout:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()
        self._process.wait()

    def _send(self, parts: Sequence[bytes]) -> None:
        remaining = [memoryview(part) for part in parts if part]
        while remaining:
            n_written = os.writev(self._stdin.fileno(), remaining)
            while remaining and n_written >= len(remaining[0]):
                n_written -= len(remaining.pop(0))
            if remaining:
                remaining[0] = remaining[0][n_written:]

    def _receive(self, count: int) -> bytearray:
        """Read `count` bytes, or fewer if the process has ended."""
        received = bytearray(count)
        remaining = memoryview(received)
        while remaining and (n_read := self._stdout.readinto(remaining)):
            remaining = remaining[n_read:]
        return received[: count - len(remaining)]


def _enlarge_pipe(pipe: io.FileIO) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # an administrator's limit: a smaller pipe is only slower
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
