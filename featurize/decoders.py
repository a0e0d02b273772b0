"""Where images are decoded: in the threads that read them, or each thread in a process of its own.

Threads hold the interpreter's lock for a part of every image. On a few cores nobody notices; on
many that feed one GPU they would wait for each other (``benchmarks/decoding.py``).
"""

import io
import json
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

import numpy as np

from featurize import images, memory
from featurize.errors import FeaturizeError, ImageUnreadable

MANY_CORES = 8  # from here on threads bring less than their cores could
MANY_IMAGES = 10_000  # fewer are decoded before processes have started
# It finds the modules that this process found, and in no other place.
CHILD = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from featurize.decoders import serve
serve(json.loads(sys.argv[2]))"""
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
            If processes cannot be started.
        """
        if not self._apart:
            return images.decode(data, self._recipe)
        mine: _Process | None = getattr(self._mine, "process", None)
        if mine is None or mine.lost:
            mine = self._mine.process = _Process(self._recipe)
            self._all.append(mine)
        return mine.decode(data)

    def close(self) -> None:
        """End the processes; nothing may be decoding any more."""
        for process in self._all:
            process.close()


class _Process:
    """A process that decodes one image after the other.

    Each image goes in as eight bytes of length and its bytes. What comes out is a byte, a reason
    code, and behind a 0 the pixels.
    """

    def __init__(self, recipe: Mapping[str, object]) -> None:
        crop = int(str(recipe["crop"]))
        self._shape = (crop, crop, 3)
        self.lost = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, json.dumps(sys.path), json.dumps(recipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C is for the process that writes the cache; this one ends with its input.
            start_new_session=True,
        )
        self._stdin = cast(io.FileIO, self._process.stdin)
        self._stdout = cast(io.FileIO, self._process.stdout)
        _widen(self._stdin)
        _widen(self._stdout)
        if self._received(1) != b"\0":
            self.close()
            raise FeaturizeError(f"a decoding process did not start: {sys.executable}")

    def decode(self, data: bytes) -> np.ndarray:
        try:
            self._send(len(data).to_bytes(8))
            self._send(data)
        except BrokenPipeError:
            pass  # what follows comes back empty
        answer = self._received(1)
        if answer == b"\0":
            pixels = np.frombuffer(self._received(int(np.prod(self._shape))), np.uint8)
            if pixels.size == np.prod(self._shape):
                return pixels.reshape(self._shape)
        elif answer:
            raise ImageUnreadable(images.REASONS[answer[0]], answer[0])
        self.lost = True
        self.close()
        raise ImageUnreadable("the process that decoded it ended", images.READ_ERROR)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
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


def decode_alone(data: bytes, recipe: Mapping[str, object]) -> np.ndarray:
    """Decode one image in a fresh process."""
    process = _Process(recipe)
    try:
        return process.decode(data)
    finally:
        process.close()


def _widen(pipe: io.FileIO) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # an administrator's limit: it works as it is, only slower
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def serve(recipe: dict[str, object]) -> None:
    """Decode what comes in on standard input, until it ends: what such a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    warnings.filterwarnings("ignore", module=r"PIL\.")
    memory.keep()
    target.write(b"\0")
    target.flush()
    while len(head := source.read(8)) == 8:
        data = source.read(int.from_bytes(head))
        try:
            pixels = images.decode(data, recipe)
        except ImageUnreadable as error:
            target.write(bytes([error.reason]))
        else:
            target.write(b"\0")
            target.write(np.ascontiguousarray(pixels).data)
        target.flush()
