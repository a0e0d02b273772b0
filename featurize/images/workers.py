"""Where images are decoded: in the threads that read them, or each thread in a process of its own.

Threads hold the interpreter's lock for a part of every image. On a few cores nobody notices; on
many that feed one GPU they would wait for each other (``benchmarks/decoding.py``).
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
from contextlib import suppress
from typing import Any, cast

import numpy as np

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images import decoding, reasons
from featurize.images.preprocess import Preprocess
from featurize.system import memory

MIN_PROCESS_CORES = 8  # from here on threads bring less than their cores could
MIN_PROCESS_IMAGES = 10_000  # fewer are decoded before processes have started
MAX_CLOSE_SECONDS = 0.5  # seconds that processes get to end by themselves
# Of an image that is tried alone. None that is accepted comes near; a machine that swaps or
# sleeps is waited for.
MAX_CPU_SECONDS, MAX_WALL_SECONDS = 120, 600  # seconds
# It ends with its parent, from its first line on. It finds the modules that this process found,
# and in no other place.
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
PIPE_BYTES = 1 << 20  # a whole picture fits, so that neither side waits for the other in between


class DecoderPool:
    """Decodes for several threads at once; begins in the threads themselves.

    Parameters
    ----------
    preprocess : Preprocess
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess, self._uses_processes = preprocess, False
        self._thread_local = threading.local()
        self._workers: list[_DecodeWorker] = []
        self._lock, self._closed = threading.Lock(), False
        self._turn_file: Any = None

    def use_processes_if_worth(self, device: str, cores: int, n_left: int) -> None:
        """Go on in processes where that pays: many cores, many images, and a GPU to feed."""
        self._uses_processes = (
            device != "cpu" and cores >= MIN_PROCESS_CORES and n_left >= MIN_PROCESS_IMAGES
        )

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels of a file's bytes: uint8 (crop, crop, 3).

        Raises
        ------
        ImageUnreadable
            As `images.decode_image`; also where the image took its process down.
        FeaturizeError
            If processes cannot be started, or `close` was called.
        """
        if not self._uses_processes:
            return decoding.decode_image(data, self._preprocess)
        mine: _DecodeWorker | None = getattr(self._thread_local, "process", None)
        if mine is None or mine.lost:
            mine = self._thread_local.process = self._start_worker()
        return mine.decode(data)

    def _start_worker(self) -> "_DecodeWorker":
        with self._lock:
            self._refuse_if_closed()
            if self._turn_file is None:
                self._turn_file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as they are
            turns = os.dup(self._turn_file.fileno())  # `close` may come in between
        try:
            process = _DecodeWorker(self._preprocess, turns)
        finally:
            os.close(turns)
        with self._lock:
            self._workers.append(process)
            if self._closed:
                process.close(0)
            self._refuse_if_closed()
        return process

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise FeaturizeError("decoding has ended")

    def close(self) -> None:
        """End the processes, within a moment: one in the midst of an image is ended all the same.

        A thread that waits for such a one gets an `ImageUnreadableError`.
        """
        with self._lock:
            self._closed = True
        until = time.monotonic() + MAX_CLOSE_SECONDS
        for process in self._workers:
            process.close(max(0.0, until - time.monotonic()))
        if self._turn_file is not None:
            self._turn_file.close()


def decode_in_process(
    data: bytes,
    preprocess: Preprocess,
    cpu_seconds: float = MAX_CPU_SECONDS,
    wall_seconds: float = MAX_WALL_SECONDS,
) -> np.ndarray:
    """Decode an image in a process of its own, that nothing else goes down with.

    For an image that may have ended a whole run. Where memory ends, the system takes that process
    first; its processor time is bounded.

    Parameters
    ----------
    data : bytes
    preprocess : Preprocess
    cpu_seconds, waiting : float
        Most seconds of the processor, and by the clock.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)

    Raises
    ------
    ImageUnreadable
        As `images.decode_image`. Where the process ends, by itself or by a signal, with the reason
        "ended the process that decoded it"; where there is no answer in time, "read error".
    FeaturizeError
        If no process can be started.
    """
    process = _DecodeWorker(preprocess, cpu_seconds=cpu_seconds)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watch = threading.Timer(wall_seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        return process.decode(data)
    except ImageUnreadableError as error:
        if not process.lost:
            raise
        if late.is_set():
            raise ImageUnreadableError(
                f"no answer within {wall_seconds:,.0f} s", reasons.READ_ERROR
            ) from error
        raise ImageUnreadableError(
            reasons.REASONS[reasons.ENDED_PROCESS], reasons.ENDED_PROCESS
        ) from error
    finally:
        watch.cancel()
        process.close(0)


class _DecodeWorker:
    """A process that decodes one image after the other.

    Each image goes in as eight bytes of length and its bytes. What comes out is a byte, a reason
    code, and behind a 0 the pixels.

    Parameters
    ----------
    preprocess : Preprocess
    turns : int, optional
        A file whose lock is held by the one that decodes a large image.
    processor : float, optional
        For one that the system takes first where memory ends: its most seconds of the processor.
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
            # Ctrl-C is for the process that writes the cache; this one ends with its input.
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
                with suppress(BrokenPipeError):  # what follows comes back empty
                    self._send(len(data).to_bytes(8))
                    self._send(data)
                answer = self._receive(1)
                if answer == b"\0":
                    pixels = np.frombuffer(self._receive(int(np.prod(self._shape))), np.uint8)
                    if pixels.size == np.prod(self._shape):
                        return pixels.reshape(self._shape)
                elif answer:
                    raise ImageUnreadableError(reasons.REASONS[answer[0]], answer[0])
                self._end(0)
        raise ImageUnreadableError("the process that decoded it ended", reasons.READ_ERROR)

    def kill(self) -> None:
        """End it at once, whatever it does; whoever waits for it hears of it."""
        self._process.kill()

    def close(self, timeout: float) -> None:
        """End it: by itself, or after so many seconds not."""
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
        rest = memoryview(data)
        while rest:
            rest = rest[self._stdin.write(rest) :]

    def _receive(self, count: int) -> bytearray:
        """So many bytes; fewer where the process has ended."""
        found = bytearray(count)
        rest = memoryview(found)
        while rest and (arrived := self._stdout.readinto(rest)):
            rest = rest[arrived:]
        return found[: count - len(rest)]


def _enlarge_pipe(pipe: io.FileIO) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # an administrator's limit: it works as it is, only slower
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def worker_main(options: dict[str, Any]) -> None:
    """Decode what comes in on standard input, until it ends: what such a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    warnings.filterwarnings("ignore", module=r"PIL\.")
    memory.retain_freed_memory()
    if options["turn_fd"] is not None:
        memory.share_turn_lock(options["turn_fd"])
    if options["cpu_seconds"] is not None:
        _limit_resources(options["cpu_seconds"])
    preprocess = Preprocess.from_dict(options["preprocess"])
    target.write(b"\0")
    target.flush()
    while len(head := source.read(8)) == 8:
        data = source.read(int.from_bytes(head))
        try:
            pixels = decoding.decode_image(data, preprocess)
        except ImageUnreadableError as error:
            target.write(bytes([error.reason]))
        except MemoryError:
            target.write(bytes([reasons.NO_MEMORY]))
        else:
            target.write(b"\0")
            target.write(np.ascontiguousarray(pixels).data)
        target.flush()


def _limit_resources(cpu_seconds: float) -> None:
    """Where memory ends, and after so many seconds of the processor from now."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = int(time.process_time() + cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
