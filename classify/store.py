"""What is kept beside a cache, in ``C.h5.kept/``: results that would cost time to make again.

Each file is named by a digest of everything that decides its content, so nothing there goes
stale: what has changed is not found. The folder may be deleted at any time.
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
WRITE_LOCK = Lock()  # a process that ends itself waits for it, so as to leave no half a file


def compute_digest(*parts: object) -> str:
    """A digest of arrays, texts and what JSON knows, in order: 64 hexadecimal digits."""
    total = sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(canonical_json([part.dtype.str, list(part.shape)]).encode())
            total.update(np.ascontiguousarray(part).data)
        else:
            total.update(canonical_json(part).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class Artifact:
    """Arrays and what is said of them, as JSON."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]


def fingerprint_layers(cache: FeatureCache, layers: Sequence[str]) -> list[list[object]]:
    """What decides the numbers of some layers, for a `compute_digest`."""
    infos = [cache.layer(name) for name in layers]
    return [[info.name, info.dim, info.fingerprint] for info in infos]


def store_dir(cache: FeatureCache) -> Path:
    """Where a cache's results are kept."""
    return cache.path.with_name(cache.path.name + ".kept")


def load_artifact(cache: FeatureCache, kind: str, key: str) -> Artifact | None:
    """What was kept under a key, or None; what is damaged, or no such file, counts as not there.

    Parameters
    ----------
    kind : str
        What it is, as part of the file's name.
    key : str
        A `compute_digest`.
    """
    path = _artifact_path(cache, kind, key)
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:  # to open a pipe would wait
            return None
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT or about.get("key") != key:
                return None
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            # Files of before tell no checksum. What they hold is checked by who asks for it.
            if about.get("crc32") not in (None, _compute_checksum(arrays, about["about"])):
                return None
            return Artifact(arrays, json.loads(about["about"]))
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError):
        return None
    except (TypeError, AttributeError):  # a type of number that numpy does not know
        return None


def save_artifact(
    cache: FeatureCache,
    kind: str,
    key: str,
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> bool:
    """Write it, whole or not at all; the folder of a read-only cache is done without.

    Returns
    -------
    bool
        Whether it was kept.
    """
    path = _artifact_path(cache, kind, key)
    text = json.dumps(about, allow_nan=False)
    metadata = {
        "format": FORMAT,
        "key": key,
        "about": text,
        "crc32": _compute_checksum(arrays, text),
    }
    draft = path.with_name(f"{path.name}.{os.getppid()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        content = save({k: np.require(v, requirements="C") for k, v in arrays.items()}, metadata)
        with WRITE_LOCK:
            with open(draft, "xb") as file:
                file.write(content)
            os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError):
            return False
        raise
    return True


def remove_partial(cache: FeatureCache) -> None:
    """Remove what this process's workers had begun to write when they were ended."""
    for draft in store_dir(cache).glob(f"*.{os.getpid()}.*.tmp"):
        with suppress(OSError):
            draft.unlink()


def _compute_checksum(arrays: Mapping[str, np.ndarray], about: str) -> str:
    """What shows that a disk gave back something else; in half the time of a `compute_digest`."""
    total = crc32(about.encode())
    for name in sorted(arrays):
        total = crc32(name.encode(), total)
        if arrays[name].size:  # a view of nothing cannot be cast
            total = crc32(np.ascontiguousarray(arrays[name]).data.cast("B"), total)
    return f"{total:08x}"


def _artifact_path(cache: FeatureCache, kind: str, key: str) -> Path:
    return store_dir(cache) / f"{kind}-{key[:32]}.safetensors"
