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
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np

from featurize import images, memory
from featurize.errors import FeaturizeError, ImageUnreadable

MANY_CORES = 8  # from here on threads bring less than their cores could
MANY_IMAGES = 10_000  # fewer are decoded before processes have started
MOMENT = 0.5  # seconds that processes get to end by themselves
# Of an image that is tried alone. None that is accepted comes near; a machine that swaps or
# sleeps is waited for.
MOST_PROCESSOR, MOST_WAITING = 120, 600  # seconds
# It ends with its parent, from its first line on. It finds the modules that this process found,
# and in no other place.
CHILD = """import os, sys
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
from featurize.decoders import serve
serve(json.loads(sys.argv[3]))"""
PIPE_BYTES = 1 << 20  # a whole picture fits, so that neither side waits for the other in between


class Decoders:
    """Decodes for several threads at once; begins in the threads themselves.

    Parameters
    ----------
    recipe : dict
        Preprocessing.
    """

    def __init__(self, recipe: Mapping[str, object]) -> None:
        self._recipe, self._apart = dict(recipe), False
        self._mine = threading.local()
        self._all: list[_Process] = []
        self._lock, self._closed = threading.Lock(), False
        self._turns: Any = None

    def consider(self, device: str, cores: int, left: int) -> None:
        """Go on in processes where that pays: many cores, many images, and a GPU to feed."""
        self._apart = device != "cpu" and cores >= MANY_CORES and left >= MANY_IMAGES

    def decode(self, data: bytes) -> np.ndarray:
        """Pixels of a file's bytes: uint8 (crop, crop, 3).

        Raises
        ------
        ImageUnreadable
            As `images.decode`; also where the image took its process down.
        FeaturizeError
            If processes cannot be started, or `close` was called.
        """
        if not self._apart:
            return images.decode(data, self._recipe)
        mine: _Process | None = getattr(self._mine, "process", None)
        if mine is None or mine.lost:
            mine = self._mine.process = self._started()
        return mine.decode(data)

    def _started(self) -> "_Process":
        with self._lock:
            self._refuse_if_closed()
            if self._turns is None:
                self._turns = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as they are
            turns = os.dup(self._turns.fileno())  # `close` may come in between
        try:
            process = _Process(self._recipe, turns)
        finally:
            os.close(turns)
        with self._lock:
            self._all.append(process)
            if self._closed:
                process.close(0)
            self._refuse_if_closed()
        return process

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise FeaturizeError("decoding has ended")

    def close(self) -> None:
        """End the processes, within a moment: one in the midst of an image is ended all the same.

        A thread that waits for such a one gets an `ImageUnreadable`.
        """
        with self._lock:
            self._closed = True
        until = time.monotonic() + MOMENT
        for process in self._all:
            process.close(max(0.0, until - time.monotonic()))
        if self._turns is not None:
            self._turns.close()


def decode_alone(
    data: bytes,
    recipe: Mapping[str, object],
    processor: float = MOST_PROCESSOR,
    waiting: float = MOST_WAITING,
) -> np.ndarray:
    """Decode an image in a process of its own, that nothing else goes down with.

    For an image that may have ended a whole run. Where memory ends, the system takes that process
    first; its processor time is bounded.

    Parameters
    ----------
    data : bytes
    recipe : dict
        Preprocessing.
    processor, waiting : float
        Most seconds of the processor, and by the clock.

    Returns
    -------
    uint8 array of shape (crop, crop, 3)

    Raises
    ------
    ImageUnreadable
        As `images.decode`. Where the process ends, by itself or by a signal, with the reason
        "ended the process that decoded it"; where there is no answer in time, "read error".
    FeaturizeError
        If no process can be started.
    """
    process = _Process(recipe, processor=processor)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watch = threading.Timer(waiting, give_up)
    watch.daemon = True
    watch.start()
    try:
        return process.decode(data)
    except ImageUnreadable as error:
        if not process.lost:
            raise
        if late.is_set():
            raise ImageUnreadable(
                f"no answer within {waiting:,.0f} s", images.READ_ERROR
            ) from error
        raise ImageUnreadable(images.REASONS[images.ENDED_PROCESS], images.ENDED_PROCESS) from error
    finally:
        watch.cancel()
        process.close(0)


class _Process:
    """A process that decodes one image after the other.

    Each image goes in as eight bytes of length and its bytes. What comes out is a byte, a reason
    code, and behind a 0 the pixels.

    Parameters
    ----------
    recipe : dict
        Preprocessing.
    turns : int, optional
        A file whose lock is held by the one that decodes a large image.
    processor : float, optional
        For one that the system takes first where memory ends: its most seconds of the processor.
    """

    def __init__(
        self,
        recipe: Mapping[str, object],
        turns: int | None = None,
        processor: float | None = None,
    ) -> None:
        crop = int(str(recipe["crop"]))
        self._shape = (crop, crop, 3)
        self.lost = False
        self._in_use = threading.Lock()
        asked = {"recipe": dict(recipe), "turns": turns, "processor": processor}
        arguments = [str(os.getpid()), json.dumps(sys.path), json.dumps(asked)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=() if turns is None else (turns,),
            # Ctrl-C is for the process that writes the cache; this one ends with its input.
            start_new_session=True,
        )
        self._stdin = cast(io.FileIO, self._process.stdin)
        self._stdout = cast(io.FileIO, self._process.stdout)
        _widen(self._stdin)
        _widen(self._stdout)
        if self._received(1) != b"\0":
            self.close(0)
            raise FeaturizeError(f"a decoding process did not start: {sys.executable}")

    def decode(self, data: bytes) -> np.ndarray:
        with self._in_use:
            if not self.lost:
                with suppress(BrokenPipeError):  # what follows comes back empty
                    self._send(len(data).to_bytes(8))
                    self._send(data)
                answer = self._received(1)
                if answer == b"\0":
                    pixels = np.frombuffer(self._received(int(np.prod(self._shape))), np.uint8)
                    if pixels.size == np.prod(self._shape):
                        return pixels.reshape(self._shape)
                elif answer:
                    raise ImageUnreadable(images.REASONS[answer[0]], answer[0])
                self._end(0)
        raise ImageUnreadable("the process that decoded it ended", images.READ_ERROR)

    def kill(self) -> None:
        """End it at once, whatever it does; whoever waits for it hears of it."""
        self._process.kill()

    def close(self, patience: float) -> None:
        """End it: by itself, or after so many seconds not."""
        if not self._in_use.acquire(timeout=patience):
            self.kill()
            self._in_use.acquire()
            patience = 0
        try:
            self._end(patience)
        finally:
            self._in_use.release()

    def _end(self, patience: float) -> None:
        self.lost = True
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        if patience:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        self.kill()
        self._process.wait()

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._stdin.write(rest) :]

    def _received(self, count: int) -> bytearray:
        """So many bytes; fewer where the process has ended."""
        found = bytearray(count)
        rest = memoryview(found)
        while rest and (arrived := self._stdout.readinto(rest)):
            rest = rest[arrived:]
        return found[: count - len(rest)]


def _widen(pipe: io.FileIO) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # an administrator's limit: it works as it is, only slower
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def serve(asked: dict[str, Any]) -> None:
    """Decode what comes in on standard input, until it ends: what such a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    warnings.filterwarnings("ignore", module=r"PIL\.")
    memory.keep()
    if asked["turns"] is not None:
        memory.share_turns(asked["turns"])
    if asked["processor"] is not None:
        _be_the_first_to_go(asked["processor"])
    target.write(b"\0")
    target.flush()
    while len(head := source.read(8)) == 8:
        data = source.read(int.from_bytes(head))
        try:
            pixels = images.decode(data, asked["recipe"])
        except ImageUnreadable as error:
            target.write(bytes([error.reason]))
        except MemoryError:
            target.write(bytes([images.NO_MEMORY]))
        else:
            target.write(b"\0")
            target.write(np.ascontiguousarray(pixels).data)
        target.flush()


def _be_the_first_to_go(processor: float) -> None:
    """Where memory ends, and after so many seconds of the processor from now."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = int(time.process_time() + processor) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
