"""Store results that are expensive to compute next to a cache, in ``C.h5.kept/``.

Each file name is a digest of everything that decides the file's content. So a stored result is
never out of date: after a change the digest differs and no file is found. The folder may be deleted
at any time.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from featurize.cache.reader import FeatureCache
from featurize.fingerprint import canonical_json

FORMAT = "headgraft-kept"
MAX_FILE_BYTES = 4 << 30
# A worker that exits waits for this lock, so that it leaves no partial file.
WRITE_LOCK = Lock()


def compute_digest(*parts: object) -> str:
    """Compute a digest of arrays, texts and JSON values, in order.

    Parameters
    ----------
    *parts : object
        Arrays count with their dtype, shape and content; anything else as canonical JSON.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.
    """
    hasher = sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            hasher.update(canonical_json([part.dtype.str, list(part.shape)]).encode())
            hasher.update(np.ascontiguousarray(part).data)
        else:
            hasher.update(canonical_json(part).encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Artifact:
    """Arrays and their metadata, as stored in one file.

    Attributes
    ----------
    arrays : mapping of str to array
    metadata : mapping of str to object
        JSON values that describe the arrays.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


def fingerprint_layers(cache: FeatureCache, layers: Sequence[str]) -> list[list[object]]:
    """List what decides the numbers of some layers, for `compute_digest`.

    Parameters
    ----------
    cache : FeatureCache
    layers : sequence of str
        Names of layers of the cache.

    Returns
    -------
    list of list
        ``[name, dim, fingerprint]`` of each layer.
    """
    infos = [cache.layer(name) for name in layers]
    return [[info.name, info.dim, info.fingerprint] for info in infos]


def store_dir(cache: FeatureCache) -> Path:
    """Return the folder in which a cache's results are stored.

    Parameters
    ----------
    cache : FeatureCache

    Returns
    -------
    Path
        Next to the cache file; it need not exist.
    """
    return cache.path.with_name(cache.path.name + ".kept")


def load_artifact(cache: FeatureCache, kind: str, key: str) -> Artifact | None:
    """Load what was stored under a key.

    Parameters
    ----------
    cache : FeatureCache
    kind : str
        The kind of result, the first part of the file's name.
    key : str
        A `compute_digest`.

    Returns
    -------
    Artifact, or None
        None where there is no such file, or where it is damaged or cannot be read.
    """
    path = _artifact_path(cache, kind, key)
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:  # opening a pipe would block
            return None
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != key:
                return None
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            # Older files have no checksum. The callers validate the arrays they load.
            if metadata.get("crc32") not in (None, _compute_checksum(arrays, metadata["about"])):
                return None
            return Artifact(arrays, json.loads(metadata["about"]))
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError):
        return None
    except (TypeError, AttributeError):  # a dtype that numpy lacks
        return None


def save_artifact(
    cache: FeatureCache,
    kind: str,
    key: str,
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> bool:
    """Store arrays under a key, atomically.

    On a read-only folder, or where writing fails, nothing is stored.

    Parameters
    ----------
    cache : FeatureCache
    kind : str
        The kind of result, the first part of the file's name.
    key : str
        A `compute_digest` of everything that decides the content.
    arrays : mapping of str to array
    about : mapping of str to object
        Metadata: finite JSON values.

    Returns
    -------
    bool
        Whether it was stored.

    Raises
    ------
    ValueError
        If `about` holds a number that is not finite.
    """
    path = _artifact_path(cache, kind, key)
    text = json.dumps(about, allow_nan=False)
    metadata = {
        "format": FORMAT,
        "key": key,
        "about": text,
        "crc32": _compute_checksum(arrays, text),
    }
    partial = path.with_name(f"{path.name}.{os.getppid()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        content = save(
            {name: np.require(array, requirements="C") for name, array in arrays.items()}, metadata
        )
        with WRITE_LOCK:
            with partial.open("xb") as file:
                file.write(content)
            partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            return False
        raise
    return True


def remove_partial(cache: FeatureCache) -> None:
    """Remove partial files that this process's workers left when they were terminated.

    Parameters
    ----------
    cache : FeatureCache
    """
    for partial in store_dir(cache).glob(f"*.{os.getpid()}.*.tmp"):
        with suppress(OSError):
            partial.unlink()


def _compute_checksum(arrays: Mapping[str, np.ndarray], about: str) -> str:
    """Compute a CRC-32 that detects disk errors, in half the time of `compute_digest`."""
    checksum = crc32(about.encode())
    for name in sorted(arrays):
        checksum = crc32(name.encode(), checksum)
        if arrays[name].size:  # an empty memoryview cannot be cast
            checksum = crc32(np.ascontiguousarray(arrays[name]).data.cast("B"), checksum)
    return f"{checksum:08x}"


def _artifact_path(cache: FeatureCache, kind: str, key: str) -> Path:
    return store_dir(cache) / f"{kind}-{key[:32]}.safetensors"
