"""Addresses of files behind a network: which are read, and what of them is never shown."""

import re
import unicodedata
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, unquote_plus

from featurize.errors import CallError
from featurize.text import did_you_mean, to_printable

MAX_ADDRESS_CHARS = 4096
# By name: fsspec knows more, among them some that run commands or read from other hosts.
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "memory")
ALL_PROTOCOLS = (*PROTOCOLS, "file")
HTTP, S3, AZURE = ("http", "https"), ("s3", "s3a"), ("az", "abfs", "abfss")

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):")
_QUERY = re.compile(r"\?([^/?=&]+=[^?]*)$")  # of an object: its name may have a question mark
_SECRET_NAME = re.compile(
    r"^(x-amz-|x-goog-|x-oss-|x-ms-|x-cos-|q-sign-|q-ak)"
    r"|token|secret|signature|passw|credential|api[-_.]?key|access[-_.]?(key|id)|session|jwt|hmac"
    r"|oauth|(^|[-_.])auth($|[-_.]|oriz|entic)"
    r"|^(sig|sign|key|code|pwd|pass|pw|policy|expires?|key-pair-id)$",
    re.IGNORECASE,
)
# Those of an Azure signature; without `sig` they may mean anything.
_AZURE_NAME = re.compile("s[vetprs]|s(pr|ip|rt|dd)|sk(oid|tid|t|e|s|v)|s(ao|uo|c)id", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where a file, or a folder of files, lies. As text it has no secret.

    Attributes
    ----------
    protocol : str
        One of `ALL_PROTOCOLS`.
    host : str
        Host and port, bucket, or container; without credentials.
    path : str
        Empty, or begins with ``/``. Percent-encoded for http, else as it is.
    query : str
        What follows the question mark of a request; it may hold a signature.
    user, password : str
        Credentials; empty if there are none.
    """

    protocol: str
    host: str
    path: str
    query: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        query = _drop_secret_parameters(self.query)
        return f"{self.folder}{'?' if query else ''}{query}"

    @property
    def folder(self) -> str:
        """The address without query, to put names of files behind."""
        return f"{self.protocol}://{self.host}{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def join(self, name: str) -> "Address":
        """Return the address of a file.

        Parameters
        ----------
        name : str
            Below this folder; percent-encoded for http.

        Returns
        -------
        Address
            With the same credentials and query.
        """
        return replace(self, path=f"{self.path.rstrip('/')}/{name}") if name else self

    def find_parent(self) -> "Address":
        """Return the address of the folder.

        Returns
        -------
        Address
            With the same credentials and query.
        """
        return replace(self, path=self.path.rstrip("/").rpartition("/")[0])


def is_address(text: str) -> bool:
    """Tell whether a text is meant as a URL, valid or not, rather than as a path.

    Parameters
    ----------
    text : str

    Returns
    -------
    bool
    """
    match = _PROTOCOL.match(text)
    if match is None:
        return False
    known = match[1].lower() in (*ALL_PROTOCOLS, "pipe")
    return known or text.startswith(("//", ":"), match.end())


def parse_address(text: str) -> Address:
    """Parse a URL, by what is allowed.

    Credentials are parsed too: ``s3://KEY:SECRET@bucket/folder``, ``https://USER:PASSWORD@host``,
    and signatures in the query.

    Parameters
    ----------
    text : str

    Returns
    -------
    Address

    Raises
    ------
    CallError
        If it is no URL that is read. The message has nothing of it but its protocol.
    """
    if len(text) > MAX_ADDRESS_CHARS:
        raise CallError(f"a URL has at most {MAX_ADDRESS_CHARS:,} characters, not {len(text):,}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise CallError("a URL has no control characters, and this one has")
    match = _PROTOCOL.match(text)
    protocol = "" if match is None else match[1].lower()
    if match is None or protocol not in ALL_PROTOCOLS:
        raise CallError(
            f"URLs begin with one of {', '.join(f'{known}://' for known in ALL_PROTOCOLS)}, not "
            f"with {to_printable(protocol, 40)!r}{did_you_mean(protocol, ALL_PROTOCOLS)}"
        )
    rest = text[match.end() :]
    if "::" in re.sub(r"^//([^/@]*@)?\[[0-9A-Fa-f:.]*\]", "", rest):
        raise CallError(f"chains of URLs, with ::, are not read; give the {protocol}:// URL alone")
    if protocol == "file":
        return _parse_file(rest)
    if not rest.startswith("//"):
        raise CallError(f"a URL begins with {protocol}://, with two slashes")
    return (_parse_http if protocol in HTTP else _parse_object)(protocol, rest[2:])


def _parse_file(rest: str) -> Address:
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
    path = unquote(slash + path)
    if host not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise CallError("a file:// URL has three slashes and an absolute path: file:///folder/name")
    return Address("file", "", path)


def _parse_http(protocol: str, rest: str) -> Address:
    rest = rest.partition("#")[0]  # never sent to a server
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, _, host = authority.rpartition("@")
    name, colon, port = host.rpartition(":")
    if colon and not port.isdigit() and not host.endswith("]"):
        raise CallError(
            f"the port of a {protocol}:// URL is no number; a password with one of / ? # @ : has "
            "it written as %2F %3F %23 %40 %3A"
        )
    name = host if host.endswith("]") or not colon else name
    if not name.strip("[]") or "\\" in authority or re.search(r"\s", host):
        raise CallError(f"a {protocol}:// URL has no valid host")
    _check_parts(protocol, unquote(path))
    user, _, password = userinfo.partition(":")
    return Address(protocol, host, slash + path, query, unquote(user), unquote(password))


def _parse_object(protocol: str, rest: str) -> Address:
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    query = _QUERY.search(path)
    if query is not None and (protocol in AZURE or query[1] != _drop_secret_parameters(query[1])):
        path = path[: query.start()]
    else:
        query = None
    user, _, password = userinfo.partition(":")
    if ":" in host or (at and protocol in S3 and not (user and password)):
        raise CallError(
            f"credentials in {protocol}:// URLs are written KEY:SECRET@bucket, with / in them as "
            "%2F; or leave them to the environment"
        )
    if protocol in AZURE and at and not password:
        host, user = f"{user}@{host}", ""  # a container of an account: no secret
    elif at and protocol not in S3:
        raise CallError(f"a {protocol}:// URL takes no credentials; leave them to the environment")
    if not host and protocol != "memory":
        raise CallError(f"a {protocol}:// URL begins with a bucket or its like, and has none")
    _check_parts(protocol, path)
    found = query[1] if query is not None else ""
    return Address(protocol, host, slash + path, found, unquote(user), unquote(password))


def _check_parts(protocol: str, path: str) -> None:
    if {".", ".."} & set(path.split("/")):
        raise CallError(f"a {protocol}:// URL with . or .. as a folder is not read")


def redact(text: str) -> str:
    """Remove what is secret from a URL, valid or not: credentials, signatures, tokens.

    Parameters
    ----------
    text : str
        A URL; other text stays as it is.

    Returns
    -------
    str
    """
    head, separator, rest = text.partition("://")
    if not separator:
        return _redact_query(text)
    protocol = re.split(r"[^A-Za-z0-9+.\-]", head)[-1].lower()
    if protocol in HTTP:
        rest = rest.partition("#")[0]
    match = re.match(r"[^/?#]*", rest)
    authority = match[0] if match else ""
    remainder = rest[len(authority) :]
    userinfo, at, host = authority.rpartition("@")
    if at:
        is_container = protocol in AZURE and ":" not in userinfo
        authority = authority if is_container else host
    elif ":" in authority and not (protocol in HTTP and re.fullmatch(r".*(:\d*|\])", authority)):
        # A secret with a slash in it: all of it lies before the last @.
        _, at, remainder = rest.rpartition("@")
        authority = "" if at else authority.partition(":")[0]
    # Another URL may follow, in a chain or a parameter.
    remainder = re.sub(r"(://|%3A%2F%2F)[^/?#&\s]*(@|%40)", r"\1", remainder, flags=re.IGNORECASE)
    return f"{head}://{authority}{_redact_query(remainder)}"


def redact_message(text: str) -> str:
    """Remove what is secret from the URLs in a message of a library.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
    """
    return re.sub(r"[A-Za-z][\w+.\-]*://[^\s'\"<>]+", lambda match: redact(match[0]), text)


def _redact_query(text: str) -> str:
    path, mark, query = text.partition("?")
    shown = _drop_secret_parameters(query)
    return f"{path}{mark if shown else ''}{shown}"


def _drop_secret_parameters(query: str) -> str:
    parameters = re.split("[&;?]", query) if query else []
    names = [unquote_plus(parameter.partition("=")[0]).strip() for parameter in parameters]
    is_azure = any(name.lower() == "sig" for name in names)
    return "&".join(
        parameter
        for parameter, name in zip(parameters, names, strict=True)
        if not _SECRET_NAME.search(name) and not (is_azure and _AZURE_NAME.fullmatch(name))
    )
