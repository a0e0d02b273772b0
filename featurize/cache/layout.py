"""Look at a cache's layout by HDF5: in a child process first, then checked, then read."""

import errno
import json
import os
import re
import stat
from typing import Any

import h5py

from featurize.cache import crash_guard
from featurize.cache.format import (
    CHECKSUMS_GROUP,
    COLUMN_DTYPES,
    EXTRACTOR_TEXT_ATTRS,
    Extent,
    Extractor,
    LayerInfo,
    Layout,
)
from featurize.cache.violations import find_violations
from featurize.errors import CacheFormatError, CacheUnreachableError
from featurize.images.preprocess import Preprocess

# What the system says where nothing is wrong with the file. A damaged address gives others.
_SYSTEM_ERRNOS = {
    getattr(errno, name, 0)
    for name in (
        *("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOLCK", "EAGAIN"),
        *("ENODEV", "ENXIO", "EREMOTEIO", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
    )
} - {0}
_safe_files: set[tuple[int, ...]] = set()  # files, as they stood, that need no second trial


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Look at a cache's layout. Follows no link, runs nothing, reads no other file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CacheFormatError
        If it is not a feature cache, or one that breaks the specification.
    """
    try:
        # A pipe would be waited for, a device read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CacheFormatError(f"{path} is not a feature cache: it is no regular file")
        state = os.stat(path)
        known = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if known not in _safe_files:
            outcome = crash_guard.probe_in_child(lambda: _check_and_parse(path))
            if outcome == crash_guard.TIMED_OUT:
                raise CacheUnreachableError(
                    f"{path} did not answer within {crash_guard.MAX_WALL_SECONDS:.0f} s; is its "
                    "disk there? It may be sound: try again"
                )
            if outcome == crash_guard.CRASHED:
                raise CacheFormatError(f"{path} is damaged: HDF5 crashes on it, or never ends")
            _safe_files.add(known)
        return _check_and_parse(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with `featurize run`") from None
    except (PermissionError, CacheFormatError, CacheUnreachableError):
        raise
    except Exception as error:  # HDF5 raises anything on hostile bytes
        number = _find_system_errno(error)
        if number:
            raise to_unreachable_error(path, OSError(number, os.strerror(number))) from error
        raise CacheFormatError(f"{path} is not a feature cache, or is damaged: {error}") from error


def to_unreachable_error(path: str | os.PathLike[str], error: OSError) -> CacheUnreachableError:
    """What the system said when a cache was to be read, as an error that names the cache."""
    return CacheUnreachableError(
        f"{path} cannot be read: {error.strerror}. It may be sound: try again"
    )


def _find_system_errno(error: Exception) -> int:
    """The system's own number of what went wrong, where it was the system; else 0."""
    said = re.search(r"errno = (\d+)", str(error))  # how HDF5 passes it on
    number = int(said.group(1)) if said else getattr(error, "errno", None) or 0
    return number if number in _SYSTEM_ERRNOS else 0


def _check_and_parse(path: str | os.PathLike[str]) -> Layout:
    with h5py.File(path, "r") as file:
        for problem in find_violations(file, os.path.getsize(path)):
            raise CacheFormatError(f"{path}: {problem}")
        return _parse_layout(file)


def _parse_layout(file: Any) -> Layout:
    group = file["extractor"].attrs
    extents = {}
    for folder in ("images", "features", CHECKSUMS_GROUP):
        for name, dataset in file.get(folder, {}).items():
            if folder != "images" or name == "path" or name in COLUMN_DTYPES:
                extents[f"{folder}/{name}"] = Extent(
                    dataset.id.get_offset(), dataset.dtype, dataset.shape
                )
    layers = {}
    for name, dataset in file["features"].items():
        layers[name] = LayerInfo(
            layer=dataset.attrs["layer"],
            pool=dataset.attrs["pool"],
            dim=dataset.shape[1],
            dtype=dataset.dtype.str,
            map_shape=tuple(int(n) for n in dataset.attrs["map_shape"]),
            fingerprint=dataset.attrs["fingerprint"],
        )
    # In the order of the file, which is the order they were asked for: by depth.
    layers = dict(sorted(layers.items(), key=lambda item: extents[f"features/{item[0]}"].offset))
    return Layout(
        version=file.attrs["format_version"],
        created=str(file.attrs.get("created", "")),
        created_by=str(file.attrs.get("created_by", "")),
        root=str(file.attrs.get("root", "")),
        include=_parse_json_texts(file.attrs.get("include")),
        exclude=_parse_json_texts(file.attrs.get("exclude")),
        n_rows=int(file.attrs["n_rows"]),
        extractor=Extractor(
            **{name: group[name] for name in EXTRACTOR_TEXT_ATTRS},
            preprocess=Preprocess.from_dict(json.loads(group["preprocess"])),
            environment=_parse_json_object(group.get("environment")),
        ),
        layers=layers,
        extents=extents,
        identity=identify_file(os.fstat(file.id.get_vfd_handle())),
    )


def identify_file(found: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever they are called."""
    return found.st_dev, found.st_ino


def _parse_json_object(text: object) -> dict[str, Any]:
    """A JSON object that nothing depends on: empty where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parse_json_texts(text: object) -> list[str]:
    """A JSON list of texts that nothing depends on: empty where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else []
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(t, str) for t in found) else []
