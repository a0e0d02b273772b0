"""Read from web servers, which may send anything: bounded in bytes, time, retries and redirects."""

import asyncio
import base64
import random
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from featurize.errors import ImageUnreadableError
from featurize.images import reasons
from featurize.sources.stores.addresses import Address
from featurize.text import to_printable

if TYPE_CHECKING:
    import yarl

MAX_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.25  # it doubles
MAX_PAUSE_SECONDS = 10.0
SILENCE_SECONDS = 30.0  # without a byte, or a connection
SECONDS_PER_FILE = 120.0  # all attempts together
SECONDS_PER_LARGE_FILE = 1800.0
MAX_REDIRECTS = 5
MAX_SKIPPED_BYTES = 16 << 20  # of a server without ranges, to get to the one asked for
PIECE_BYTES = 1 << 16

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HttpAnswer(NamedTuple):
    """What a server sent.

    Attributes
    ----------
    data : bytes
    is_whole : bool
        Whether everything asked for was read; else it exceeds the limit.
    size : int
        Of the whole file; -1 if the server does not say.
    version : str
        What changes with the content; empty if the server says nothing.
    """

    data: bytes
    is_whole: bool
    size: int
    version: str


class _TryAgainError(Exception):
    """A failure that may pass."""

    def __init__(self, problem: str, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.pause = pause


@dataclass(frozen=True)
class HttpRequest:
    """A request for a file, or a range of its bytes.

    Attributes
    ----------
    address : Address
    limit : int
        Read at most so many bytes; 0 to read the headers of the answer alone.
    start, stop : int, optional
        A range; None for the whole file.
    seconds : float, optional
        For everything; default `SECONDS_PER_FILE`.
    """

    address: Address
    limit: int
    start: int = 0
    stop: int | None = None
    seconds: float | None = None

    async def send(self, session: Any) -> HttpAnswer:
        """Send the request, again if the server is busy or the connection breaks.

        Parameters
        ----------
        session : aiohttp.ClientSession

        Returns
        -------
        HttpAnswer

        Raises
        ------
        ImageUnreadableError
            If the server refuses, redirects to another host, or gives no valid answer.
        """
        problem, seconds = "no answer", self.seconds or SECONDS_PER_FILE
        try:
            async with asyncio.timeout(seconds):
                for attempt in range(MAX_ATTEMPTS):
                    try:
                        return await self._try(session)
                    except _TryAgainError as error:
                        problem, pause = str(error), error.pause
                    if attempt + 1 < MAX_ATTEMPTS:
                        doubled = FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.7, 1.3)
                        await asyncio.sleep(min(max(pause, doubled), MAX_PAUSE_SECONDS))
        except TimeoutError:
            problem = f"not answered completely within {seconds:.0f} s"
        raise self._fail(problem)

    def _fail(self, problem: str, reason: int = reasons.READ_ERROR) -> ImageUnreadableError:
        return ImageUnreadableError(
            f"{to_printable(self.address)} cannot be read: {problem}", reason
        )

    async def _try(self, session: Any) -> HttpAnswer:
        import aiohttp

        try:
            url = _make_url(self.address)
        except ValueError:
            raise self._fail("its URL is not valid") from None
        try:
            for _ in range(MAX_REDIRECTS + 1):
                async with session.get(url, **self._make_options(url)) as response:
                    if response.status not in _REDIRECTS:
                        return await self._read(response)
                    url = self._follow(url, response.headers.get("Location", ""))
        except ImageUnreadableError:
            raise  # a ValueError too
        except aiohttp.ClientPayloadError:
            raise _TryAgainError("cut short by the server") from None
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError) as error:
            raise self._fail(_NAMES.get(type(error).__name__, "its URL is not valid")) from None
        except aiohttp.ClientConnectorError as error:
            text = error.os_error.strerror or "cannot be connected"
            raise _TryAgainError(f"the server cannot be reached: {text.lower()}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = _NAMES.get(type(error).__name__, type(error).__name__)
            raise _TryAgainError(f"no valid answer: {text}") from None
        raise self._fail(f"it redirects more than {MAX_REDIRECTS} times")

    def _make_options(self, url: "yarl.URL") -> dict[str, Any]:
        import aiohttp

        headers = {}
        if self.address.user or self.address.password:
            pair = f"{self.address.user}:{self.address.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        if self.stop is not None:
            headers["Range"] = f"bytes={self.start}-{self.stop - 1}"
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS
        )
        return {
            "headers": headers,
            "allow_redirects": False,
            "timeout": timeout,
            "proxy": _find_proxy(url),
        }

    def _follow(self, url: "yarl.URL", location: str) -> "yarl.URL":
        """Return where a redirect leads: on the same host, or a stranger's list could read any."""
        import yarl

        target = url.join(yarl.URL(location))
        is_upgrade = (url.scheme, url.port, target.scheme, target.port) == (
            "http",
            80,
            "https",
            443,
        )
        if target.host == url.host and (target.origin() == url.origin() or is_upgrade):
            return target.with_user(None)
        host = to_printable(target.host or "nowhere", 80)
        raise self._fail(
            f"it redirects to another host, {target.scheme}://{host}, which is not followed; give "
            "the address there if it is to be trusted",
            reasons.NO_PERMISSION,
        )

    async def _read(self, response: Any) -> HttpAnswer:
        status = response.status
        if status in _BUSY:
            pause = response.headers.get("Retry-After", "")
            raise _TryAgainError(
                f"the server answers with status {status}", float(pause) if pause.isdigit() else 0.0
            )
        if status in (404, 410):
            name = to_printable(self.address)
            raise ImageUnreadableError(f"{name} is gone (status {status})", reasons.VANISHED)
        if status in (401, 403, 407):
            raise self._fail(f"it may not be, by status {status}", reasons.NO_PERMISSION)
        headers = response.headers
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        if status == 416 and self.stop is not None:
            return HttpAnswer(b"", True, _parse_total(headers), version)
        if status not in (200, 206):
            raise self._fail(f"the server answers with status {status}")
        size = response.content_length
        if status == 206:
            if not headers.get("Content-Range", "").startswith(f"bytes {self.start}-"):
                raise self._fail("the server sends other bytes than were asked for")
            size = _parse_total(headers)
        elif headers.get("Content-Encoding", "identity") != "identity" or size is None:
            size = -1
        if status == 200 and self.start > MAX_SKIPPED_BYTES:
            raise self._fail("the server sends whole files only, no ranges: download it first")
        n_skipped = self.start if status == 200 else 0
        n_wanted = self.limit if self.stop is None else min(self.limit, self.stop - self.start)
        if not self.limit or (self.stop is None and size > self.limit):
            return HttpAnswer(b"", False, size, version)
        data = bytearray()
        async for piece in response.content.iter_chunked(PIECE_BYTES):
            data += piece
            if len(data) > n_skipped + n_wanted:
                break
        is_whole = self.stop is not None or len(data) <= n_skipped + n_wanted
        return HttpAnswer(bytes(data[n_skipped : n_skipped + n_wanted]), is_whole, size, version)


_NAMES = {
    "ClientConnectorCertificateError": "its certificate is not valid",
    "ServerDisconnectedError": "the server ends the connection",
    "ServerTimeoutError": "the server is silent",
    "SocketTimeoutError": "the server is silent",
    "ConnectionTimeoutError": "the server is silent",
    "ConnectionResetError": "the server ends the connection",
    "ClientOSError": "the connection breaks",
}


def _make_url(address: Address) -> "yarl.URL":
    import yarl

    plain = replace(address, query="")
    text = f"{plain}?{address.query}" if address.query else str(plain)
    # What is encoded already is sent as it stands, or a signature would not fit any more.
    return yarl.URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def _find_proxy(url: "yarl.URL") -> str | None:
    """Find the proxy that the environment names for a host."""
    host = url.host or ""
    if urllib.request.proxy_bypass(f"{host}:{url.port}") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _parse_total(headers: Mapping[str, str]) -> int:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else -1
