"""Read a cache's layout by HDF5: first in a child process, then check it, then parse it."""

import errno
import json
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from featurize.cache import crash_guard
from featurize.cache.format import (
    CHECKSUMS_GROUP,
    COLUMN_DTYPES,
    CONTAINER_DTYPES,
    CONTAINERS_GROUP,
    EXTRACTOR_TEXT_ATTRS,
    PLACE_DTYPES,
    ContainerRecord,
    Extent,
    Extractor,
    LayerInfo,
    Layout,
)
from featurize.cache.violations import OpenedGroup, find_violations
from featurize.errors import CacheFormatError, CacheUnreachableError
from featurize.images.preprocess import Preprocess

# Errors of the system that say nothing against the file. A damaged address gives other errors.
_SYSTEM_ERRNOS = {
    getattr(errno, name, 0)
    for name in (
        *("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOLCK", "EAGAIN"),
        *("ENODEV", "ENXIO", "EREMOTEIO", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
    )
} - {0}
PROBED_TOGETHER = 200  # they take a second or two of the child's processor time
_safe_files: set[tuple[int, ...]] = set()  # device, inode, size and time of files that passed


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read and check the layout of a cache.

    No HDF5 link is followed, no code from the file runs, and no other file is read.

    Parameters
    ----------
    path : path
        The cache file.

    Returns
    -------
    Layout

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CacheFormatError
        If it is not a feature cache, or breaks the specification.
    CacheUnreachableError
        If the system cannot read the file now.
    """
    try:
        # Opening a pipe would block, and reading a device would never end.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise CacheFormatError(f"{path} is not a feature cache: it is no regular file")
        file_state = _read_state(path)
        if file_state not in _safe_files:
            outcome = crash_guard.probe_in_child(lambda: _check_and_parse(path))
            if outcome == crash_guard.TIMED_OUT:
                raise CacheUnreachableError(
                    f"{path} did not answer within {crash_guard.MAX_WALL_SECONDS:.0f} s; is its "
                    "disk there? It may be sound: try again"
                )
            if outcome == crash_guard.CRASHED:
                raise CacheFormatError(f"{path} is damaged: HDF5 crashes on it, or never ends")
            _safe_files.add(file_state)
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


def probe_layouts(paths: Sequence[Path]) -> None:
    """Look at many files in few child processes, so that `read_layout` needs none for each.

    Nothing is said of a file that is no cache or crashes HDF5: `read_layout` finds that out.

    Parameters
    ----------
    paths : sequence of Path
    """
    unknown = []
    for path in paths:
        with suppress(OSError):
            state = _read_state(path)
            if state not in _safe_files and path.is_file():
                unknown.append((path, state))
    for start in range(0, len(unknown), PROBED_TOGETHER):
        group = unknown[start : start + PROBED_TOGETHER]

        def look(group: list[tuple[Path, tuple[int, ...]]] = group) -> None:
            for path, _ in group:
                with suppress(Exception):
                    _check_and_parse(path)

        if crash_guard.probe_in_child(look) == crash_guard.COMPLETED:
            _safe_files.update(state for _, state in group)


def _read_state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written to."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def to_unreachable_error(path: str | os.PathLike[str], error: OSError) -> CacheUnreachableError:
    """Convert an error of the system to one that names the cache.

    Parameters
    ----------
    path : path
        The cache that could not be read.
    error : OSError

    Returns
    -------
    CacheUnreachableError
        To be raised by the caller.
    """
    return CacheUnreachableError(
        f"{path} cannot be read: {error.strerror}. It may be sound: try again"
    )


def _find_system_errno(error: Exception) -> int:
    """Return the errno of the system's error behind an exception; 0 if there is none."""
    match = re.search(r"errno = (\d+)", str(error))  # as in messages of HDF5
    number = int(match.group(1)) if match else getattr(error, "errno", None) or 0
    return number if number in _SYSTEM_ERRNOS else 0


def _check_and_parse(path: str | os.PathLike[str]) -> Layout:
    with h5py.File(path, "r") as file:
        opened: dict[str, Any] = {}
        for problem in find_violations(file, Path(path).stat().st_size, opened):
            raise CacheFormatError(f"{path}: {problem}")
        identity = identify_file(os.fstat(file.id.get_vfd_handle()))
        return _parse_layout(OpenedGroup(opened), identity)


def _parse_layout(file: OpenedGroup, identity: tuple[int, int]) -> Layout:
    group = file["extractor"].attrs
    extents = {}
    columns = {
        "images": {"path", *COLUMN_DTYPES, *PLACE_DTYPES},
        CONTAINERS_GROUP: {"name", *CONTAINER_DTYPES},
    }
    for folder in ("images", "features", CHECKSUMS_GROUP, CONTAINERS_GROUP):
        for name, dataset in file[folder].items() if folder in file else ():
            if folder not in columns or name in columns[folder]:
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
    # In the order of the file, which is by depth.
    layers = dict(sorted(layers.items(), key=lambda item: extents[f"features/{item[0]}"].offset))
    return Layout(
        version=file.attrs["format_version"],
        created_by=str(file.attrs.get("created_by", "")),
        root=str(file.attrs.get("root", "")),
        include=_parse_json_texts(file.attrs.get("include")),
        exclude=_parse_json_texts(file.attrs.get("exclude")),
        source=_parse_json_object(file.attrs.get("source")),
        containers=_parse_containers(file),
        n_rows=int(file.attrs["n_rows"]),
        extractor=Extractor(
            **{name: group[name] for name in EXTRACTOR_TEXT_ATTRS},
            preprocess=Preprocess.from_dict(json.loads(group["preprocess"])),
            environment=_parse_json_object(group.get("environment")),
        ),
        layers=layers,
        extents=extents,
        identity=identity,
    )


def _parse_containers(file: OpenedGroup) -> list[ContainerRecord]:
    if CONTAINERS_GROUP not in file:
        return []
    group = file[CONTAINERS_GROUP]
    values = [group[name][:].tolist() for name in CONTAINER_DTYPES]
    names = [name.decode("utf-8", "replace") for name in group["name"][:].tolist()]
    return [ContainerRecord(*record) for record in zip(names, *values, strict=True)]


def identify_file(found: os.stat_result) -> tuple[int, int]:
    """Identify a file independently of its name.

    Parameters
    ----------
    found : os.stat_result

    Returns
    -------
    (int, int)
        Device and inode.
    """
    return found.st_dev, found.st_ino


def _parse_json_object(text: object) -> dict[str, Any]:
    """Parse an informative JSON object; return an empty one if the text is not one."""
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _parse_json_texts(text: object) -> list[str]:
    """Parse an informative JSON list of strings; return an empty one if the text is not one."""
    try:
        values = json.loads(text) if isinstance(text, str) else []
    except (ValueError, RecursionError):
        return []
    return (
        values
        if isinstance(values, list) and all(isinstance(value, str) for value in values)
        else []
    )
