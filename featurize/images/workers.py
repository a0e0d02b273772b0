"""Decode images in the threads that read them, or in one worker process per thread.

Threads hold the interpreter's lock for a part of every image. On a few cores this does not matter.
On many cores that feed one GPU the threads would wait for each other (``benchmarks/decoding.py``).
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.system import memory

MIN_PROCESS_CORES = 8  # from here on threads do not use their cores fully
MIN_PROCESS_IMAGES = 10_000  # fewer are decoded before processes would have started
MAX_CLOSE_SECONDS = 0.5  # time for processes to end by themselves
# For an image that is decoded in its own process. No accepted image comes near them. The wall time
# allows for a machine that swaps or sleeps.
MAX_CPU_SECONDS, MAX_WALL_SECONDS = 120, 600
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
from featurize.images.workers import worker_main
worker_main(json.loads(sys.argv[3]))"""
# One process for each core is enough: libraries of arithmetic start as many threads as cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PIPE_BYTES = 1 << 20  # holds a whole image, so that neither side waits for the other midway


class DecoderPool:
    """A decoder for several threads at once. It starts by decoding in the threads themselves.

    Parameters
    ----------
    preprocess : Preprocess
        Size, interpolation and decode mode.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess, self._uses_processes = preprocess, False
        self._workers: list[_DecodeWorker] = []
        self._idle: list[_DecodeWorker] = []
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

    def decode(self, data: bytes) -> np.ndarray:
        """Decode an image file.

        Parameters
        ----------
        data : bytes
            Content of the file.

        Returns
        -------
        uint8 array of shape (crop, crop, 3)
            RGB pixels.

        Raises
        ------
        ImageUnreadableError
            As `featurize.images.decoding.decode_image` does; also if the worker process ended.
        FeaturizeError
            If a process cannot be started, or `close` was called.
        """
        if not self._uses_processes:
            return decoding.decode_image(data, self._preprocess)
        # A process is no thread's own: the threads of a later job find it idle.
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or worker.lost:
            worker = self._start_worker()
        try:
            return worker.decode(data)
        finally:
            with self._lock:
                if worker.lost:
                    self._workers.remove(worker)
                else:
                    self._idle.append(worker)

    def _start_worker(self) -> "_DecodeWorker":
        with self._lock:
            self._refuse_if_closed()
            if self._turn_file is None:
                self._turn_file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the pool
            if self._starters is None:
                self._starters = ThreadPoolExecutor(thread_name_prefix="start decoding")
            starters = self._starters
            turn_fd = os.dup(self._turn_file.fileno())  # `close` may be called meanwhile
        try:
            worker = starters.submit(_DecodeWorker, self._preprocess, turn_fd).result()
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
    worker = _DecodeWorker(preprocess, cpu_seconds=cpu_seconds)
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        worker.kill()

    timer = threading.Timer(wall_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        return worker.decode(data)
    except ImageUnreadableError as error:
        if not worker.lost:
            raise
        if timed_out.is_set():
            raise ImageUnreadableError(
                f"no answer within {wall_seconds:,.0f} s", reasons.READ_ERROR
            ) from error
        raise ImageUnreadableError(
            reasons.REASONS[reasons.ENDED_PROCESS], reasons.ENDED_PROCESS
        ) from error
    finally:
        timer.cancel()
        worker.close(0)


class _DecodeWorker:
    """A process that decodes one image after the other.

    A request is the length of an image file in eight bytes, then its content. The reply is one
    byte, a reason code; after a code of 0 the pixels follow.

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
        self._shape = (preprocess.crop, preprocess.crop, 3)
        self.lost = False
        self._lock = threading.Lock()
        options = {
            "preprocess": preprocess.to_dict(),
            "turn_fd": turn_fd,
            "cpu_seconds": cpu_seconds,
        }
        arguments = [str(os.getpid()), json.dumps(sys.path), json.dumps(options)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER_CODE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=() if turn_fd is None else (turn_fd,),
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
            # Ctrl-C is handled by the process that writes the cache; this one ends with its input.
            start_new_session=True,
        )
        self._stdin = cast(io.FileIO, self._process.stdin)
        self._stdout = cast(io.FileIO, self._process.stdout)
        _enlarge_pipe(self._stdin)
        _enlarge_pipe(self._stdout)
        if self._receive(1) != b"\0":
            self.close(0)
            raise FeaturizeError(f"a decoding process did not start: {sys.executable}")

    def decode(self, data: bytes) -> np.ndarray:
        with self._lock:
            if not self.lost:
                with suppress(BrokenPipeError):  # the process has ended: the reply will be empty
                    self._send(len(data).to_bytes(8))
                    self._send(data)
                reply = self._receive(1)
                if reply == b"\0":
                    pixels = np.frombuffer(self._receive(int(np.prod(self._shape))), np.uint8)
                    if pixels.size == np.prod(self._shape):
                        return pixels.reshape(self._shape)
                elif reply:
                    raise ImageUnreadableError(reasons.REASONS[reply[0]], reply[0])
                self._end(0)
        raise ImageUnreadableError("the process that decoded it ended", reasons.READ_ERROR)

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

    def _send(self, data: bytes) -> None:
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[self._stdin.write(remaining) :]

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


def worker_main(options: dict[str, Any]) -> None:
    """Run a worker process: decode the images that arrive on standard input, until it ends.

    Parameters
    ----------
    options : dict
        ``preprocess``, ``turn_fd`` and ``cpu_seconds`` of the worker, as plain values.
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
    replies.write(b"\0")
    replies.flush()
    while len(length := requests.read(8)) == 8:
        data = requests.read(int.from_bytes(length))
        try:
            pixels = decoding.decode_image(data, preprocess)
        except ImageUnreadableError as error:
            replies.write(bytes([error.reason]))
        except MemoryError:
            replies.write(bytes([reasons.NO_MEMORY]))
        else:
            replies.write(b"\0")
            replies.write(np.ascontiguousarray(pixels).data)
        replies.flush()


def _limit_resources(cpu_seconds: float) -> None:
    """Let the system end this process first for lack of memory, and limit its processor time."""
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as file:
        file.write("1000")
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = int(time.process_time() + cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
