"""Check the layout of a file against the clauses of docs/cache-format.md."""

import json
import re
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from featurize.cache.format import (
    CHECKSUM_DTYPE,
    CHECKSUMS_GROUP,
    COLUMN_DTYPES,
    CONTAINER_DTYPES,
    CONTAINERS_GROUP,
    EXTRACTOR_TEXT_ATTRS,
    FORMAT_NAME,
    FORMAT_VERSION,
    PAGE_BYTES,
    PLACE_DTYPES,
    SUPPORTED_FEATURES,
    list_required_features,
)
from featurize.errors import CallError
from featurize.fingerprint import compute_fingerprint
from featurize.images.preprocess import PREPROCESS_KEYS, Preprocess
from featurize.layer_spec import LayerSpec

MAX_OBJECTS = 10_000  # far above any real cache; bounds the walk through a hostile file


class OpenedGroup:
    """A group of an HDF5 file whose members are open: to open each again takes most of the time.

    Parameters
    ----------
    opened : dict of str to object
        The groups and datasets of the file by their paths, without a slash in front; the file
        itself is under an empty one.
    path : str
        Of the group.
    """

    def __init__(self, opened: dict[str, Any], path: str = "") -> None:
        self._opened, self._path = opened, path
        self._prefix = f"{path}/" if path else ""
        self.attrs = opened[path].attrs

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._opened

    def __getitem__(self, name: str) -> Any:
        item = self._opened[self._prefix + name]
        return OpenedGroup(self._opened, self._prefix + name) if _is_group(item) else item

    def get(self, name: str, default: Any = None) -> Any:
        """Return a member, or what is given where there is none."""
        return self[name] if self._prefix + name in self._opened else default

    def items(self) -> list[tuple[str, Any]]:
        """List the members with their names, in the order of the file."""
        start = len(self._prefix)
        names = [
            path[start:]
            for path in self._opened
            if path and path.startswith(self._prefix) and "/" not in path[start:]
        ]
        return [(name, self[name]) for name in names]


def _is_group(item: Any) -> bool:
    return isinstance(item, h5py.Group)


def find_violations(file: Any, file_bytes: int, opened: dict[str, Any]) -> Iterator[str]:
    """Find the ways in which an open HDF5 file breaks the specification.

    Parameters
    ----------
    file : h5py.File
        Open for reading.
    file_bytes : int
        Size of the file.
    opened : dict of str to object
        Becomes what `OpenedGroup` takes.

    Yields
    ------
    str
        One sentence per violation.
    """
    if file.attrs.get("format") != FORMAT_NAME:
        yield "is HDF5 but not a feature cache (no format attribute of ours)"
        return
    yield from _find_version_violations(file)
    byte_ranges: list[tuple[int, int, str]] = []
    unsafe = list(_find_unsafe_objects(file, byte_ranges, opened))
    yield from unsafe
    if unsafe:
        return  # the checks below would read unsafe objects
    file = OpenedGroup(opened)
    missing = [name for name in ("extractor", "images", "features") if name not in file]
    if missing:
        yield f"group missing: {', '.join(missing)}"
        return
    for name in (*EXTRACTOR_TEXT_ATTRS, "preprocess"):
        if not isinstance(file["extractor"].attrs.get(name), str):
            yield f"extractor: attribute {name} is missing or not text"
    yield from _find_preprocess_violations(file)
    n_rows = file.attrs.get("n_rows")
    if not isinstance(n_rows, (int, np.integer)) or n_rows < 1:
        yield "attribute n_rows is missing or not a positive number"
        return
    yield from _find_column_violations(file, int(n_rows), file_bytes)
    yield from _find_feature_violations(file, int(n_rows), file_bytes)
    yield from _find_checksum_violations(file, int(n_rows), file_bytes)
    yield from _find_place_violations(file, int(n_rows), file_bytes)
    yield from _find_overlaps(byte_ranges)


def _find_version_violations(file: Any) -> Iterator[str]:
    version, required = file.attrs.get("format_version"), file.attrs.get("required_features")
    if not isinstance(version, str) or not re.fullmatch(r"[1-9]\d{0,8}\.\d{1,9}", version):
        yield f"format_version {version!r} is not two numbers, as in 1.0"
        return
    if int(version.split(".")[0]) > FORMAT_VERSION[0]:
        yield f"format version {version} is newer than this Headgraft; upgrade it"
        return
    try:
        needed = json.loads(required) if isinstance(required, str) else None
    except ValueError:
        needed = None
    if not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
        yield f"required_features is {required!r}, not a JSON list of names"
        return
    unknown = sorted(set(needed) - SUPPORTED_FEATURES)
    if unknown:
        yield f"needs features unknown to this Headgraft ({', '.join(unknown)}); upgrade it"


def _find_preprocess_violations(file: Any) -> Iterator[str]:
    text = file["extractor"].attrs.get("preprocess")
    try:
        fields = json.loads(text) if isinstance(text, str) else None
        if not isinstance(fields, dict) or not fields.keys() >= PREPROCESS_KEYS:
            raise ValueError("it lacks a field")
        Preprocess.from_dict(fields)
        # Another text of the same preprocessing would give another fingerprint.
        if fields.get("fit") == "crop":
            raise ValueError("fit is left out where it is crop")
        named = set(json.loads(file.attrs.get("required_features")))
        needed = set(list_required_features(fields.get("fit", "crop"), fields["decode"]))
        for name in sorted((named ^ needed) & SUPPORTED_FEATURES):
            yield f"required_features names {name} where preprocess has it, and only there"
    except (CallError, TypeError, ValueError) as error:
        yield f"extractor: preprocess is incomplete or invalid: {error}"


def _find_unsafe_objects(
    file: Any, byte_ranges: list[tuple[int, int, str]], opened: dict[str, Any]
) -> Iterator[str]:
    """Yield objects that refer to other files, or are not plain numbers and text.

    The start, the end and the name of each object and array are appended to `byte_ranges`, and the
    objects are put into `opened`.
    """
    opened[""] = file
    groups, seen, count = [file], {h5py.h5o.get_info(file.id).addr}, 0
    while groups:
        group = groups.pop()
        yield from _find_unsafe_attributes(group)
        for name in group:
            count += 1
            where = f"{group.name.rstrip('/')}/{name}"
            if count > MAX_OBJECTS:
                yield "more objects than any cache has"
                return
            encoded = name.encode(errors="surrogateescape")
            if group.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                yield f"{where} is a link; a cache has none"
                continue
            item = opened[where[1:]] = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                yield f"{where} is a second name for another object"
                continue
            seen.add(address)
            byte_ranges.append((address, address + 1, f"the header of {where}"))
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                yield from _find_unsafe_attributes(item)
                yield from _find_unsafe_storage(item, where)
                if (start := item.id.get_offset()) is not None:
                    byte_ranges.append((start, start + item.id.get_storage_size(), where))
            else:
                yield f"{where} is a stored type; a cache has none"


def _find_unsafe_attributes(item: Any) -> Iterator[str]:
    attrs = item.attrs
    for name in attrs:
        dtype = attrs.get_id(name).dtype
        is_text = h5py.check_string_dtype(dtype) is not None
        if not is_text and (dtype.kind not in "iufb" or dtype.metadata):
            yield f"attribute {name} of {item.name} is neither numbers nor text"


def _find_unsafe_storage(dataset: Any, where: str) -> Iterator[str]:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        yield f"{where} is a virtual dataset"
    elif plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count():
        yield f"{where} lies in another file"
    if dataset.dtype.kind not in "iufbS" or h5py.check_dtype(ref=dataset.dtype):
        yield f"{where} is neither numbers nor fixed-width text"


def _find_column_violations(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    images = file["images"]
    for name in ("path", *COLUMN_DTYPES):
        if not isinstance(images.get(name), h5py.Dataset):
            yield f"column images/{name} is missing"
            continue
        dataset = images[name]
        shape = (n_rows, 32) if name == "sha256" else (n_rows,)
        if dataset.shape != shape:
            yield f"images/{name} has shape {dataset.shape}, not {shape}"
        if name == "path":
            text = h5py.check_string_dtype(dataset.dtype)
            if text is None or text.length is None or text.encoding != "utf-8":
                yield "images/path is not fixed-width UTF-8"
        elif dataset.dtype != np.dtype(COLUMN_DTYPES[name]):
            yield f"images/{name} is {dataset.dtype}, not {np.dtype(COLUMN_DTYPES[name])}"
        yield from _find_extent_violations(dataset, file_bytes)


def _find_feature_violations(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    if not file["features"].items():
        yield "there are no features in it"
    for name, dataset in file["features"].items():
        where = f"features/{name}"
        if not isinstance(dataset, h5py.Dataset):
            yield f"{where} is not a dataset"
            continue
        if dataset.ndim != 2 or dataset.shape[0] != n_rows or dataset.shape[1] < 1:
            yield f"{where} has shape {dataset.shape}, not ({n_rows}, D)"
        if dataset.dtype.str not in ("<f4", "<f2"):
            yield f"{where} is {dataset.dtype}, not little-endian float32 or float16"
        attrs = dataset.attrs
        if not all(isinstance(attrs.get(key), str) for key in ("layer", "pool", "fingerprint")):
            yield f"{where}: attribute layer, pool or fingerprint is missing or not text"
        elif name != LayerSpec(attrs["layer"], attrs["pool"]).key:
            yield f"{where} holds {attrs['layer']} pooled by {attrs['pool']}: the wrong name"
        shape = attrs.get("map_shape")
        if not isinstance(shape, np.ndarray) or shape.dtype.kind not in "iu" or shape.ndim != 1:
            yield f"{where}: attribute map_shape is missing or not whole numbers"
        yield from _find_fingerprint_violations(file["extractor"].attrs, dataset, where)
        yield from _find_extent_violations(dataset, file_bytes)
        if (dataset.id.get_offset() or 0) % PAGE_BYTES:
            yield f"{where} is not aligned to {PAGE_BYTES} bytes"


def _find_fingerprint_violations(extractor_attrs: Any, dataset: Any, where: str) -> Iterator[str]:
    """Yield a violation if a layer's metadata does not give its fingerprint."""
    attrs = dataset.attrs
    try:
        expected = compute_fingerprint(
            backbone=extractor_attrs["backbone"],
            weights_sha256=extractor_attrs["weights_sha256"],
            preprocess=json.loads(extractor_attrs["preprocess"]),
            layer=attrs["layer"],
            pool=attrs["pool"],
            precision=extractor_attrs["precision"],
            dtype=dataset.dtype.str,
        )
    except (KeyError, TypeError, ValueError):
        return  # the missing attribute is reported elsewhere
    if expected != attrs.get("fingerprint"):
        yield (
            f"{where}: its fingerprint is not that of backbone, weights_sha256, preprocess, "
            "layer, pool, precision and dtype as they stand here; one of them was altered"
        )


def _find_checksum_violations(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    group = file.get(CHECKSUMS_GROUP, {})
    if not hasattr(group, "items"):
        yield f"{CHECKSUMS_GROUP} is not a group"
        return
    for name, dataset in group.items():
        where = f"{CHECKSUMS_GROUP}/{name}"
        if not isinstance(dataset, h5py.Dataset) or name not in file["features"]:
            yield f"{where} is not the column of a layer"
            continue
        if dataset.shape != (n_rows, 2) or dataset.dtype != np.dtype(CHECKSUM_DTYPE):
            yield f"{where} is {dataset.dtype} of shape {dataset.shape}, not uint32 ({n_rows}, 2)"
        yield from _find_extent_violations(dataset, file_bytes)


def _find_place_violations(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    """Yield violations of the columns that say where images lie; older caches have none."""
    if CONTAINERS_GROUP not in file:
        return
    group = file[CONTAINERS_GROUP]
    names = group.get("name") if isinstance(group, OpenedGroup) else None
    text = h5py.check_string_dtype(names.dtype) if isinstance(names, h5py.Dataset) else None
    if names is None or text is None or text.length is None or names.ndim != 1:
        yield f"{CONTAINERS_GROUP}/name is missing or not fixed-width text"
        return
    columns = [
        (CONTAINERS_GROUP, name, dtype, names.shape) for name, dtype in CONTAINER_DTYPES.items()
    ]
    columns += [("images", name, dtype, (n_rows,)) for name, dtype in PLACE_DTYPES.items()]
    yield from _find_extent_violations(names, file_bytes)
    for parent, name, dtype, shape in columns:
        where, dataset = f"{parent}/{name}", file.get(f"{parent}/{name}")
        if not isinstance(dataset, h5py.Dataset):
            yield f"column {where} is missing"
            continue
        if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
            yield f"{where} is {dataset.dtype} of shape {dataset.shape}, not {dtype} {shape}"
        yield from _find_extent_violations(dataset, file_bytes)


def _find_overlaps(byte_ranges: list[tuple[int, int, str]]) -> Iterator[str]:
    """Yield objects and arrays that share bytes of the file."""
    end, owner = 0, ""
    for start, stop, where in sorted(byte_ranges):
        if start < end:
            yield f"{where} lies on the bytes of {owner}"
        if stop > end:
            end, owner = stop, where


def _find_extent_violations(dataset: Any, file_bytes: int) -> Iterator[str]:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        yield f"{dataset.name} is not contiguous and unfiltered"
        return
    offset = dataset.id.get_offset()
    if offset is None:
        yield f"{dataset.name} has no space in the file"
    elif offset + dataset.size * dataset.dtype.itemsize > file_bytes:
        yield f"{dataset.name} reaches beyond the end of the file: it was cut short"
