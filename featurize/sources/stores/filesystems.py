"""Open file systems of fsspec, one for each process and account."""

import functools
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any

from featurize.errors import CallError, ImageUnreadableError
from featurize.images import reading, reasons
from featurize.sources.listing import make_stamp
from featurize.sources.stores.addresses import AZURE, HTTP, PROTOCOLS, S3, Address, redact_message
from featurize.text import to_printable

MAX_CONNECTIONS = 256  # readers share them
SECONDS_PER_REQUEST = 120.0  # with all that the client tries again

_PACKAGES = {
    **dict.fromkeys((*S3, *HTTP, "memory"), '"headgraft[remote]"'),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(AZURE, "adlfs"),
    "hf": "huggingface_hub",
}
_ACCOUNT_HELP = {
    **dict.fromkeys(
        S3,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public one",
    ),
    **dict.fromkeys(("gs", "gcs"), "set GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(AZURE, "set AZURE_STORAGE_CONNECTION_STRING"),
    "hf": "set HF_TOKEN",
}
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "md5", "blob_id")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class _State:
    opening_lock = threading.Lock()


def open_filesystem(address: Address) -> Any:
    """Open the file system of an address; once in a process.

    Connections and threads do not survive a fork, so that a child opens its own. Listings are
    never cached: a second run in one process sees what is there now.

    Parameters
    ----------
    address : Address

    Returns
    -------
    fsspec.AbstractFileSystem

    Raises
    ------
    CallError
        If its package is missing, or refuses the options.
    """
    if address.protocol not in PROTOCOLS:
        raise CallError(f"{address.protocol}:// is no protocol of a network")
    options = {"key": address.user, "secret": address.password} if address.protocol in S3 else {}
    if address.protocol in AZURE:
        options = {"sas_token": address.query, "container": address.host}
    given = tuple((name, value) for name, value in options.items() if value)
    with _State.opening_lock:
        return _open_once(os.getpid(), address.protocol, given)


@functools.lru_cache(maxsize=64)
def _open_once(pid: int, protocol: str, given: tuple[tuple[str, str], ...]) -> Any:
    try:
        import fsspec
        from fsspec.config import conf

        kind = fsspec.get_filesystem_class(protocol)
        if protocol in HTTP:
            import aiohttp  # noqa: F401
    except (ImportError, ValueError) as error:
        raise CallError(
            f"{protocol}:// needs a package that is missing: pip install {_PACKAGES[protocol]}"
        ) from error
    options: dict[str, Any] = dict(given)
    container = options.pop("container", "")
    if protocol in AZURE:
        options |= kind._get_kwargs_from_urls(f"{protocol}://{container}/")
    if protocol in HTTP:
        options["get_client"] = _make_client
    elif kind.__module__.startswith("s3fs"):
        set_by_user = conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": MAX_CONNECTIONS, **set_by_user}
    try:
        return kind(**options, use_listings_cache=False, skip_instance_cache=True)
    except Exception as error:  # of any kind: packages check options in their own ways
        text = _describe(error, given)
        raise CallError(f"{protocol}:// cannot be opened: {text}") from None


async def _make_client(loop: object, **configured: Any) -> Any:
    """Make a client for http that keeps no cookies and reads no netrc file.

    Of what users configure for fsspec (FSSPEC_HTTP_CLIENT_KWARGS) it takes headers.
    """
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": "headgraft",
            **configured.get("headers", {}),
            "Accept-Encoding": "identity",
        },
    )


def strip_address(filesystem: Any, address: Address) -> str:
    """Return the path of an address in its file system.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
    address : Address

    Returns
    -------
    str
    """
    return str(filesystem._strip_protocol(address.folder))


async def call_filesystem(filesystem: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a file system within `SECONDS_PER_REQUEST`, on its event loop.

    Parameters
    ----------
    filesystem : fsspec.AbstractFileSystem
    method : str
        As ``cat_file``. One that is not asynchronous is called in a thread.
    *arguments, **options

    Returns
    -------
    object
    """
    import asyncio

    call: Coroutine[Any, Any, Any]
    if filesystem.async_impl:
        call = getattr(filesystem, f"_{method}")(*arguments, **options)
    else:
        call = asyncio.to_thread(getattr(filesystem, method), *arguments, **options)
    return await asyncio.wait_for(call, SECONDS_PER_REQUEST)


def run_on_loop(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Run a coroutine on the event loop of fsspec, and wait for it.

    Parameters
    ----------
    function : callable
        Makes the coroutine.
    *arguments

    Returns
    -------
    object
    """
    from fsspec.asyn import get_loop, sync

    return sync(get_loop(), function, *arguments)


def find_stamp(info: Mapping[str, Any]) -> int:
    """Find the version stamp of a file in what its store says of it.

    Parameters
    ----------
    info : mapping of str to object
        As fsspec gives it.

    Returns
    -------
    int
        0 if there is nothing that changes with the content.
    """
    for name in _VERSIONS:
        if info.get(name):
            return make_stamp(info[name])
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            value = value.timestamp()
        if value and isinstance(value, (int, float, str)):
            return make_stamp(value, info.get("size"))
    return 0


def to_unreadable_error(error: BaseException, address: Address) -> ImageUnreadableError:
    """Convert an error of any store to one that has a reason of the cache.

    Parameters
    ----------
    error : BaseException
    address : Address
        Of what was to be read.

    Returns
    -------
    ImageUnreadableError
        Without any secret.
    """
    if isinstance(error, ImageUnreadableError):
        return error
    name, status = to_printable(address), _find_status(error)
    if isinstance(error, (FileNotFoundError, MemoryError)) or status in (404, 410):
        plain = error if isinstance(error, MemoryError) else FileNotFoundError()
        return reading.to_unreadable_error(plain, name)
    is_account = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    if isinstance(error, PermissionError) or status in (401, 403) or is_account:
        help_text = _ACCOUNT_HELP.get(address.protocol, "")
        message = f"{name} may not be read{': ' if help_text else ''}{help_text}"
        return ImageUnreadableError(message, reasons.NO_PERMISSION)
    if isinstance(error, TimeoutError):
        message = f"{name} cannot be read: no answer within {SECONDS_PER_REQUEST:.0f} s"
        return ImageUnreadableError(message, reasons.READ_ERROR)
    text = _describe(error, (("", address.user), ("", address.password), ("", address.query)))
    return ImageUnreadableError(f"{name} cannot be read: {text}", reasons.READ_ERROR)


def _find_status(error: BaseException) -> int | None:
    """Find the status of http in an error of gcsfs, adlfs or huggingface_hub."""
    response = getattr(error, "response", None)
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if str(value).isdigit():
                return int(str(value))
    return None


def is_empty_range(error: BaseException) -> bool:
    """Tell whether a store refused a range because the file has no such bytes.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    bool
    """
    text = f"{error} {error.__cause__}"
    return "InvalidRange" in text or "not satisfiable" in text or _find_status(error) == 416


def _describe(error: BaseException, secrets: tuple[tuple[str, str], ...]) -> str:
    text = redact_message(f"{error}" or type(error).__name__)
    for _, secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, "...")
    return to_printable(text, 200)


def _reset_after_fork() -> None:
    _State.opening_lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
