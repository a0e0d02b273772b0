"""Copies of remote shards that were indexed, so that reading takes them from the disk."""

import hashlib
import os
import re
import secrets
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from featurize.errors import CallError, ImageUnreadableError
from featurize.files import replace_durably
from featurize.images.reasons import READ_ERROR
from featurize.sources.containers.archives.window_file import TarHeaderFile
from featurize.sources.listing import Container
from featurize.text import to_printable

MAX_BYTES = 20_000_000_000
STREAM_BLOCK_BYTES = 4 << 20
MAX_TEMPORARY_SECONDS = 24 * 3600.0  # an older temporary file is of a process that was killed
_OWN_NAME = re.compile(r"[0-9a-f]{40}\.tar(\.[0-9a-f]{8}\.tmp)?")


@dataclass(frozen=True)
class ShardCopies:
    """Copies of shards in a folder, bounded in bytes; the oldest go first.

    Parameters
    ----------
    folder : str
        Made if it is missing.
    max_bytes : int
    """

    folder: str
    max_bytes: int = MAX_BYTES

    def find(self, root: str, shard: Container) -> int | None:
        """Open the copy of a shard.

        Parameters
        ----------
        root : str
            Of the store.
        shard : Container

        Returns
        -------
        int, optional
            A file descriptor, to be closed; None without a copy of the same size and stamp.
        """
        path = self._locate(root, shard)
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return None
        status = os.fstat(fd)
        if status.st_size != shard.size or not shard.stamp or status.st_uid != os.geteuid():
            os.close(fd)
            return None
        with suppress(OSError):
            os.utime(path)  # what was used last goes last
        return fd

    def remove(self, root: str, shard: Container) -> None:
        """Remove the copy of a shard.

        Parameters
        ----------
        root : str
            Of the store.
        shard : Container
        """
        with suppress(OSError):
            self._locate(root, shard).unlink()

    @contextmanager
    def write(self, root: str, shard: Container) -> "Iterator[CopyWriter]":
        """Write a copy of a shard while it is read as a stream.

        Parameters
        ----------
        root : str
            Of the store.
        shard : Container

        Yields
        ------
        CopyWriter
            The copy is kept if the block ends without an error and all bytes were written.

        Raises
        ------
        CallError
            If nothing can be written to the folder.
        """
        target = self._locate(root, shard)
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
        if not 0 < shard.size <= self.max_bytes or not shard.stamp:
            yield CopyWriter(None)  # it could not be recognised, or be kept
            return
        try:
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(shard.size)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            folder = to_printable(self.folder)
            raise CallError(f"--scratch: cannot write to {folder}: {error.strerror}") from error
        writer = CopyWriter(os.fdopen(fd, "wb"))
        try:
            yield writer
            if writer.finish() == shard.size:
                replace_durably(temporary, target)
        finally:
            writer.close()
            with suppress(OSError):
                temporary.unlink()

    def _locate(self, root: str, shard: Container) -> Path:
        text = "\0".join((root, shard.name, str(shard.stamp)))
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return Path(self.folder, f"{digest[:40]}.tar")

    def _make_room(self, n_bytes: int) -> None:
        copies = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if _OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        copies.append((status.st_mtime, status.st_size, entry.path))
        total = n_bytes + sum(size for _, size, _ in copies)
        for mtime, size, path in sorted(copies):
            is_temporary = path.endswith(".tmp")
            is_left = is_temporary and mtime < time.time() - MAX_TEMPORARY_SECONDS
            if is_left or (total > self.max_bytes and not is_temporary):
                Path(path).unlink(missing_ok=True)
                total -= size


class CopyWriter:
    """Takes what is read of a stream; a disk that is full ends the copy, not the stream.

    Parameters
    ----------
    file : binary file, optional
        None to keep nothing.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file, self._n_written = file, 0

    @property
    def is_open(self) -> bool:
        """Whether a copy is being written."""
        return self._file is not None

    def write(self, data: bytes) -> None:
        """Append bytes to the copy."""
        if self._file is not None:
            try:
                self._file.write(data)
                self._n_written += len(data)
            except OSError:
                self.close()

    def finish(self) -> int:
        """Sync the copy; return its size in bytes, -1 if there is none."""
        if self._file is None:
            return -1
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            return -1
        return self._n_written

    def close(self) -> None:
        """Write no more."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()


class ShardStream(TarHeaderFile):
    """A shard that is read once, from its beginning to its end, in large blocks.

    Parameters
    ----------
    file : binary file
    shard : Container
        Its size may be unknown.
    writer : CopyWriter
        Gets all that is read.
    """

    def __init__(self, file: BinaryIO, shard: Container, writer: CopyWriter) -> None:
        super().__init__(self._read_on, shard.size)
        self._file, self._name, self._writer = file, shard.name, writer
        self._block_start, self._block = 0, b""

    def _read_on(self, position: int, n_bytes: int) -> bytes:
        """Read on to a position, and at least `n_bytes` from there, but at the end."""
        if position < self._block_start:
            raise tarfile.ReadError("a header leads back")
        while position + n_bytes > (end := self._block_start + len(self._block)):
            kept = self._block[position - self._block_start :]
            block = self._read_block()
            self._block_start, self._block = end - len(kept), kept + block
            if not block:
                self.size = end
                break
        return self._block[position - self._block_start :]

    def drain(self) -> None:
        """Read to the end, for a copy."""
        while self._writer.is_open and self._read_block():
            pass

    def _read_block(self) -> bytes:
        try:
            block = self._file.read(STREAM_BLOCK_BYTES)
        except ImageUnreadableError:
            raise
        except Exception as error:  # any of a network's; its text may hold a secret
            problem = f"{self._name} cannot be read: {type(error).__name__}"
            raise ImageUnreadableError(problem, READ_ERROR) from error
        self._writer.write(block)
        return block
