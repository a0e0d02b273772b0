"""Files behind a network, by fsspec and, for web servers, by a client with limits of its own."""

import asyncio
import queue
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading, reasons
from featurize.images.reading import ImageFile
from featurize.sources.listing import make_stamp
from featurize.sources.stores import filesystems, http_client
from featurize.sources.stores.addresses import HTTP, Address, parse_address
from featurize.sources.stores.filesystems import to_unreadable_error
from featurize.sources.stores.http_client import HttpRequest
from featurize.sources.stores.range_file import RangeFile
from featurize.sources.stores.store import StoredFile
from featurize.system import memory
from featurize.text import to_printable

MAX_REQUESTS = 64  # of one thread at a time
FIRST_BYTES = 8 << 20  # images are asked for without knowing their sizes; larger ones once more


class _AddressedStore(ABC):
    """What stores share whose files have addresses."""

    is_remote = True

    @abstractmethod
    def find_address(self, name: str) -> Address:
        """Return the address of a file; raise `CallError` if it has none."""

    def stat_file(self, name: str) -> StoredFile:
        """Look at one file; see `Store.stat_file`."""
        (file,) = self.stat_files([name])
        if isinstance(file, ImageUnreadableError):
            raise CallError(str(file))
        return file

    def stat_files(self, names: Sequence[str]) -> list[StoredFile | ImageUnreadableError]:
        """Look at files, with one small request for each.

        Parameters
        ----------
        names : sequence of str
            n names.

        Returns
        -------
        list of StoredFile or ImageUnreadableError
            n; the error says why there is none.
        """
        addresses = [self.find_address(name) for name in names]
        answers: list[Any] = [None] * len(names)
        for i, answer in _request_all([_Request("stat", address) for address in addresses]):
            answers[i] = (
                to_unreadable_error(answer, addresses[i])
                if isinstance(answer, BaseException)
                else StoredFile(names[i], *answer)
            )
        return answers

    def open_file(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking; see `Store.open_file`. It reads ahead."""
        address = self.find_address(name)
        size, _ = _request_one(_Request("stat", address))
        if size < 0:
            raise ImageUnreadableError(
                f"{to_printable(address)} cannot be read by parts: its server does not say how "
                "many bytes it has; download it first",
                reasons.READ_ERROR,
            )

        def read_range(start: int, stop: int) -> bytes:
            return cast(bytes, _request_one(_Request("range", address, start, stop)))

        return cast(BinaryIO, RangeFile(read_range, size))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read a range of a file's bytes; see `Store.read_range`."""
        if stop <= start:
            return b""
        request = _Request("range", self.find_address(name), start, stop)
        return cast(bytes, _request_one(request))

    def read_files(
        self, names: Sequence[str], stamps: Sequence[int]
    ) -> Iterator[tuple[int, ImageFile | ImageUnreadableError]]:
        """Read whole files, many at once, with the stamps given; see `Store.read_files`."""
        requests: list[_Request] = []
        rows: list[int] = []
        for i, name in enumerate(names):
            try:
                requests.append(_Request("first", self.find_address(name)))
                rows.append(i)
            except CallError as error:
                yield i, ImageUnreadableError(str(error), reasons.NO_PERMISSION)
        large: list[tuple[int, Address]] = []
        for k, data in _request_all(requests):
            i, address = rows[k], requests[k].address
            if data is None:
                large.append((i, address))
            elif isinstance(data, BaseException):
                yield i, to_unreadable_error(data, address)
            else:
                yield i, _make_image(data, stamps[i], address)
        for i, address in large:
            yield i, _read_large(address, stamps[i])


@dataclass(frozen=True)
class RemoteStore(_AddressedStore):
    """Files below a URL.

    Parameters
    ----------
    address : Address
        As `parse_address` gives it; its credentials serve every file.
    """

    address: Address

    @property
    def root(self) -> str:
        """The URL, without credentials and query."""
        return self.address.folder.rstrip("/")

    def find_address(self, name: str) -> Address:
        """Return the address of a file.

        Parameters
        ----------
        name : str

        Returns
        -------
        Address
        """
        return self.address.join(name)

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """List the files below a folder by one recursive listing; see `Store.list_files`.

        Hidden ones are left out.
        """
        address = self.address.join(folder)
        if address.protocol in HTTP:
            raise CallError(
                f"{to_printable(address)}: web servers do not list their files; give their URLs "
                "with braces, as in shard-{000..063}.tar, or a .csv or .jsonl file of URLs"
            )
        filesystem = filesystems.open_filesystem(address)
        root = filesystems.strip_address(filesystem, self.address)
        path = filesystems.strip_address(filesystem, address)
        try:
            filesystem.invalidate_cache()
            infos = filesystem.find(path, detail=True)
        except FileNotFoundError:
            infos = {}
        except Exception as error:
            raise CallError(str(to_unreadable_error(error, address))) from None
        prefix = f"{root.rstrip('/')}/"
        n_parts = len(folder.split("/")) if folder else 0
        for found, info in infos.items():
            name = found.removeprefix(prefix)
            parts = name.split("/")[n_parts:]
            if (
                found.startswith(prefix)
                and info.get("type") == "file"
                and not name.endswith("/")
                and not any(part.startswith(".") for part in parts)
            ):
                yield StoredFile(name, _get_size(info), filesystems.find_stamp(info))


@dataclass(frozen=True)
class UrlStore(_AddressedStore):
    """Files whose names are whole URLs, of several hosts and protocols."""

    root = ""

    def find_address(self, name: str) -> Address:
        """Return the address of a file.

        Parameters
        ----------
        name : str
            Its URL.

        Returns
        -------
        Address

        Raises
        ------
        CallError
            If it is no URL of a network.
        """
        address = parse_address(name)
        if address.protocol == "file":
            raise CallError("a file:// URL is no URL of a network")
        return address

    def list_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Refuse: URLs are given, not found."""
        raise CallError("a list of URLs has no folder to be listed")


@dataclass(frozen=True)
class _Request:
    """What to ask a store for.

    `kind` is ``first`` (the file; None if it has more than `FIRST_BYTES`), ``range`` (some of its
    bytes), ``large`` (the file, of `stop` bytes; -1 if unknown) or ``stat`` (its size and stamp).
    """

    kind: str
    address: Address
    start: int = 0
    stop: int = 0

    def open_filesystem(self) -> Any:
        return filesystems.open_filesystem(self.address)

    async def send(self, filesystem: Any) -> Any:
        if self.address.protocol in HTTP:
            return await self._send_http(await filesystem.set_session())
        return await self._send_other(filesystem)

    async def _send_http(self, session: Any) -> Any:
        address = self.address
        if self.kind == "stat":
            answer = await HttpRequest(address, 0, 0, 1).send(session)
            return answer.size, make_stamp(answer.version, answer.size) if answer.version else 0
        if self.kind == "range":
            n_bytes = self.stop - self.start
            answer = await HttpRequest(address, n_bytes, self.start, self.stop).send(session)
            return answer.data
        if self.kind == "first":
            answer = await HttpRequest(address, FIRST_BYTES).send(session)
            return answer.data if answer.is_whole else None
        seconds, limit = http_client.SECONDS_PER_LARGE_FILE, reading.MAX_FILE_BYTES
        answer = await HttpRequest(address, limit, seconds=seconds).send(session)
        if not answer.is_whole:
            raise _fail_too_large(address, answer.size)
        return answer.data

    async def _send_other(self, filesystem: Any) -> Any:
        path = filesystems.strip_address(filesystem, self.address)
        if self.kind == "stat":
            info = await filesystems.call_filesystem(filesystem, "info", path)
            if info.get("type") == "directory":
                raise FileNotFoundError(path)
            return _get_size(info), filesystems.find_stamp(info)
        # Always a range, or the file system would ask for the size first.
        start, stop = {
            "first": (0, FIRST_BYTES + 1),
            "range": (self.start, self.stop),
            "large": (0, self.stop),
        }[self.kind]
        try:
            data = await filesystems.call_filesystem(
                filesystem, "cat_file", path, start=start, end=stop
            )
        except Exception as error:
            if filesystems.is_empty_range(error):
                return b""
            raise
        if len(data) > stop - start:
            raise OSError("the store sends more bytes than were asked for")
        return None if self.kind == "first" and len(data) > FIRST_BYTES else data


def _request_all(requests: Sequence[_Request]) -> Iterator[tuple[int, Any]]:
    """Send requests, `MAX_REQUESTS` at a time; yield each answer, or error, as it comes."""
    answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    opened: list[tuple[int, Any]] = []
    for i, request in enumerate(requests):
        try:
            opened.append((i, request.open_filesystem()))
        except CallError as error:
            yield i, ImageUnreadableError(str(error), reasons.READ_ERROR)
    if not opened:
        return
    from fsspec.asyn import get_loop

    async def send_one(i: int, filesystem: Any, turns: asyncio.Semaphore) -> None:
        async with turns:
            try:
                answer = await requests[i].send(filesystem)
            except Exception as error:
                answer = error
        answers.put((i, answer))

    async def send_all() -> None:
        turns = asyncio.Semaphore(MAX_REQUESTS)
        await asyncio.gather(*(send_one(*item, turns) for item in opened))

    sending = asyncio.run_coroutine_threadsafe(send_all(), get_loop())
    try:
        for _ in opened:
            yield answers.get()
    finally:
        sending.cancel()


def _request_one(request: _Request) -> Any:
    """Send one request; raise `ImageUnreadableError`."""
    try:
        return filesystems.run_on_loop(request.send, request.open_filesystem())
    except CallError as error:
        raise ImageUnreadableError(str(error), reasons.READ_ERROR) from None
    except Exception as error:
        raise to_unreadable_error(error, request.address) from None


def _read_large(address: Address, stamp: int) -> ImageFile | ImageUnreadableError:
    """Read an image of more than `FIRST_BYTES`, alone, when its memory is reserved."""
    try:
        size, _ = _request_one(_Request("stat", address))
        if size > reading.MAX_FILE_BYTES:
            return _fail_too_large(address, size)
        # Twice: it comes in pieces. Of unknown size, it may be anything.
        n_bytes = 2 * (size if size >= 0 else 8 * FIRST_BYTES)
        with memory.reserve(n_bytes, to_printable(address)):
            data = _request_one(_Request("large", address, 0, size))
    except ImageUnreadableError as error:
        return error
    except MemoryError as error:
        return to_unreadable_error(error, address)
    return _make_image(data, stamp, address)


def _make_image(data: bytes, stamp: int, address: Address) -> ImageFile | ImageUnreadableError:
    if not data:
        return ImageUnreadableError(f"{to_printable(address)} is empty", reasons.EMPTY)
    return ImageFile(data, len(data), stamp)


def _fail_too_large(address: Address, size: int) -> ImageUnreadableError:
    said = f"{size:,} bytes" if size >= 0 else f"more than {reading.MAX_FILE_BYTES:,} bytes"
    return ImageUnreadableError(f"{to_printable(address)} has {said}", reasons.TOO_LARGE)


def _get_size(info: Any) -> int:
    with suppress(TypeError, ValueError):
        return int(info.get("size"))
    return -1
