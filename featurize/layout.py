"""The file format: where everything lies in a feature cache, and what a reader refuses.

The specification is docs/cache-format.md. HDF5 is used twice only: to draw a layout, in
memory, and to look at a file's. Everything else is bytes at known offsets.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from featurize.errors import CacheFormatError, CallError
from featurize.recipe import RECIPE_KEYS, checked_recipe
from featurize.trial import survives

FORMAT = "headgraft-feature-cache"
VERSION = (1, 0)
UNDERSTOOD_FEATURES: frozenset[str] = frozenset()
PENDING, MARKED, FAILED = 0, 1, 2
PAGE = 4096
MAX_OBJECTS = 10_000  # far above any real cache; bounds the walk through a hostile file
COLUMNS = {"sha256": "u1", "size": "<i8", "mtime_ns": "<i8", "status": "u1", "reason": "u1"}
EXTRACTOR_TEXTS = ("backbone", "weights", "weights_sha256", "precision")


@dataclass(frozen=True)
class Extractor:
    """What made the features: the backbone, its weights and its preprocessing.

    `environment` is informative; everything else decides the numbers.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocess: Mapping[str, Any]
    precision: str
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class LayerInfo:
    """One layer's features: `dim` numbers of `dtype` a row, pooled by `pool` from `map_shape`."""

    layer: str
    pool: str
    dim: int
    dtype: str
    map_shape: tuple[int, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """The dataset's name: the layer, or ``LAYER@POOL`` where the pool is not ``avg``."""
        return self.layer if self.pool == "avg" else f"{self.layer}@{self.pool}"


@dataclass(frozen=True)
class Extent:
    """A contiguous array inside the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """Everything in a cache but its rows."""

    version: str
    created: str
    created_by: str
    root: str
    n_rows: int
    extractor: Extractor
    layers: dict[str, LayerInfo]
    extents: dict[str, Extent]  # "images/status", "features/layer3", ...
    identity: tuple[int, int]  # of the file that was read


_survived: set[tuple[int, ...]] = set()  # files, as they stood, that need no second trial


def read(path: str | os.PathLike[str]) -> Layout:
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
        if known not in _survived and not survives(lambda: _look(path)):
            raise CacheFormatError(f"{path} is damaged: HDF5 crashes on it, or never ends")
        _survived.add(known)
        return _look(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; make it with `featurize run`") from None
    except PermissionError:
        raise
    except CacheFormatError:
        raise
    except Exception as error:  # HDF5 raises anything on hostile bytes
        raise CacheFormatError(f"{path} is not a feature cache, or is damaged: {error}") from error


def _look(path: str | os.PathLike[str]) -> Layout:
    with h5py.File(path, "r") as file:
        for problem in problems(file, os.path.getsize(path)):
            raise CacheFormatError(f"{path}: {problem}")
        return _read(file)


def _read(file: Any) -> Layout:
    group = file["extractor"].attrs
    extents = {}
    for folder in ("images", "features"):
        for name, dataset in file[folder].items():
            if folder == "features" or name == "path" or name in COLUMNS:
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
        n_rows=int(file.attrs["n_rows"]),
        extractor=Extractor(
            **{name: group[name] for name in EXTRACTOR_TEXTS},
            preprocess=json.loads(group["preprocess"]),
            environment=_informative(group.get("environment")),
        ),
        layers=layers,
        extents=extents,
        identity=identity(os.fstat(file.id.get_vfd_handle())),
    )


def identity(found: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever they are called."""
    return found.st_dev, found.st_ino


def _informative(text: object) -> dict[str, Any]:
    """A JSON object that nothing depends on: empty where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def problems(file: Any, file_bytes: int) -> Iterator[str]:
    """Say in which ways an open HDF5 file breaks the specification; nothing if it does not."""
    if file.attrs.get("format") != FORMAT:
        yield "is HDF5 but not a feature cache (no format attribute of ours)"
        return
    yield from _version_problems(file)
    dangerous = list(_dangers(file))
    yield from dangerous
    if dangerous:
        return  # nothing below may be touched
    missing = [name for name in ("extractor", "images", "features") if name not in file]
    if missing:
        yield f"group missing: {', '.join(missing)}"
        return
    for name in (*EXTRACTOR_TEXTS, "preprocess"):
        if not isinstance(file["extractor"].attrs.get(name), str):
            yield f"extractor: attribute {name} is missing or not text"
    yield from _recipe_problems(file["extractor"].attrs.get("preprocess"))
    n_rows = file.attrs.get("n_rows")
    if not isinstance(n_rows, (int, np.integer)) or n_rows < 1:
        yield "attribute n_rows is missing or not a positive number"
        return
    yield from _column_problems(file, int(n_rows), file_bytes)
    yield from _feature_problems(file, int(n_rows), file_bytes)


def _version_problems(file: Any) -> Iterator[str]:
    version, required = file.attrs.get("format_version"), file.attrs.get("required_features")
    if not isinstance(version, str) or not re.fullmatch(r"[1-9]\d{0,8}\.\d{1,9}", version):
        yield f"format_version {version!r} is not two numbers, as in 1.0"
        return
    if int(version.split(".")[0]) > VERSION[0]:
        yield f"format version {version} is newer than this Headgraft; upgrade it"
        return
    try:
        needed = json.loads(required) if isinstance(required, str) else None
    except ValueError:
        needed = None
    if not isinstance(needed, list) or not all(isinstance(name, str) for name in needed):
        yield f"required_features is {required!r}, not a JSON list of names"
        return
    unknown = sorted(set(needed) - UNDERSTOOD_FEATURES)
    if unknown:
        yield f"needs features unknown to this Headgraft ({', '.join(unknown)}); upgrade it"


def _recipe_problems(text: object) -> Iterator[str]:
    try:
        recipe = json.loads(text) if isinstance(text, str) else None
        if not isinstance(recipe, dict) or not recipe.keys() >= RECIPE_KEYS:
            raise ValueError("it lacks a field")
        checked_recipe(recipe)
    except (CallError, ValueError) as error:
        yield f"extractor: preprocess is not a whole recipe: {error}"


def _dangers(file: Any) -> Iterator[str]:
    """Everything in the file that would lead out of it or is not plain numbers and text."""
    groups, seen, count = [file], {h5py.h5o.get_info(file.id).addr}, 0
    while groups:
        group = groups.pop()
        yield from _attribute_dangers(group)
        for name in group:
            count += 1
            where = f"{group.name.rstrip('/')}/{name}"
            if count > MAX_OBJECTS:
                yield "more objects than any cache has"
                return
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield f"{where} is a link; a cache has none"
                continue
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                yield f"{where} is a second name for another object"
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                yield from _attribute_dangers(item)
                yield from _dataset_dangers(item, where)
            else:
                yield f"{where} is a stored type; a cache has none"


def _attribute_dangers(item: Any) -> Iterator[str]:
    for name in item.attrs:
        kind = item.attrs.get_id(name).dtype
        text = h5py.check_string_dtype(kind) is not None
        if not text and (kind.kind not in "iufb" or kind.metadata):
            yield f"attribute {name} of {item.name} is neither numbers nor text"


def _dataset_dangers(dataset: Any, where: str) -> Iterator[str]:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        yield f"{where} is a virtual dataset"
    elif plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count():
        yield f"{where} lies in another file"
    if dataset.dtype.kind not in "iufbS" or h5py.check_dtype(ref=dataset.dtype):
        yield f"{where} is neither numbers nor fixed-width text"


def _column_problems(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    images = file["images"]
    for name in ("path", *COLUMNS):
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
        elif dataset.dtype != np.dtype(COLUMNS[name]):
            yield f"images/{name} is {dataset.dtype}, not {np.dtype(COLUMNS[name])}"
        yield from _extent_problems(dataset, file_bytes)


def _feature_problems(file: Any, n_rows: int, file_bytes: int) -> Iterator[str]:
    if not len(file["features"]):
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
        elif name != LayerInfo(attrs["layer"], attrs["pool"], 1, "<f4", (), "").name:
            yield f"{where} holds {attrs['layer']} pooled by {attrs['pool']}: the wrong name"
        shape = attrs.get("map_shape")
        if not isinstance(shape, np.ndarray) or shape.dtype.kind not in "iu" or shape.ndim != 1:
            yield f"{where}: attribute map_shape is missing or not whole numbers"
        yield from _extent_problems(dataset, file_bytes)
        if (dataset.id.get_offset() or 0) % PAGE:
            yield f"{where} is not aligned to {PAGE} bytes"


def _extent_problems(dataset: Any, file_bytes: int) -> Iterator[str]:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        yield f"{dataset.name} is not contiguous and unfiltered"
        return
    offset = dataset.id.get_offset()
    if offset is None:
        yield f"{dataset.name} has no space in the file"
    elif offset + dataset.size * dataset.dtype.itemsize > file_bytes:
        yield f"{dataset.name} reaches beyond the end of the file: it was cut short"
