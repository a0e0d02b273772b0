"""What files of heads hold, checked as it is read: anyone may have written them."""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from classify.errors import HeadFileError, OutputError

FORMAT = "headgraft-head"
VERSION = (1, 2)
MAX_FILE_BYTES = 4 << 30  # a file with a network in it
MAX_UNPACKED_BYTES = 1 << 30
NETWORK_PREFIX = "network."
LAYER_DTYPES = ("<f4", "<f2")
MAX_CLASS_NAME_CHARS = 131_072  # the limit of a cell in Python's csv module
SEEN_KEY = "seen"


@contextmanager
def open_head_file(path: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open the file of a head of any kind, and check its format and version.

    Parameters
    ----------
    path : path

    Yields
    ------
    file : safetensors file
    metadata : dict of str to str

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If it is not a head, or what is done with it fails: hostile bytes make parsers raise
        anything.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"head {path} does not exist; make one with `classify fit`")
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise HeadFileError(
            f"{path} is no file, or one of over {MAX_FILE_BYTES >> 30} GB: not a head"
        )
    try:
        with safe_open(path, "np") as file:
            _check_unique_keys(path)
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise HeadFileError("is not a head (no format entry of ours)")
            version = metadata.get("version", "")
            if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) > VERSION[0]:
                raise HeadFileError(f"version {version!r} is unknown to this Headgraft; upgrade it")
            yield file, metadata
    except HeadFileError as error:
        raise HeadFileError(f"{path}: {error}") from error
    except PermissionError:
        raise
    except Exception as error:  # hostile bytes make the parsers raise anything
        raise HeadFileError(f"{path} is not a head, or is damaged: {error}") from error


def _check_unique_keys(path: Path) -> None:
    """Refuse a header with a duplicate key: parsers differ in which of the values they use."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        _parse_json(file.read(length))


def _parse_json(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=_reject_duplicate_keys)


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise HeadFileError("a name is there twice")
    return unique


def read_value(metadata: Mapping[str, str], name: str, is_valid: Callable[[Any], bool]) -> Any:
    """Read a value of the metadata.

    Parameters
    ----------
    metadata : mapping of str to str
        JSON by name.
    name : str
    is_valid : callable
        Takes the value.

    Returns
    -------
    object

    Raises
    ------
    HeadFileError
        If it is missing or not valid.
    """
    if name not in metadata:
        raise HeadFileError(f"{name} is missing")
    value = _parse_json(metadata[name])
    if not is_valid(value):
        raise HeadFileError(f"{name} is not what it should be")
    return value


def read_seen(file: Any) -> np.ndarray:
    """Read the hash prefixes of the images that a head was trained on.

    Parameters
    ----------
    file : safetensors file

    Returns
    -------
    uint64 array

    Raises
    ------
    HeadFileError
        If they are missing or of another type.
    """
    if SEEN_KEY not in file.keys():  # noqa: SIM118 - the file is no mapping
        raise HeadFileError("it does not say which images it was trained on")
    view = file.get_slice(SEEN_KEY)
    if view.get_dtype() != "U64" or len(view.get_shape()) != 1:
        raise HeadFileError("the list of images it was trained on is not one of 64-bit numbers")
    return np.asarray(file.get_tensor(SEEN_KEY))


def dump_estimator(estimator: Any, head: str) -> np.ndarray:
    """Turn a fitted estimator of scikit-learn into bytes.

    Parameters
    ----------
    estimator : estimator
    head : str
        Name of the head, for the message.

    Returns
    -------
    uint8 array

    Raises
    ------
    OutputError
        If it holds objects that would not be loaded again, or skops is not installed.
    """
    content = _load_skops_function("dumps")(estimator)
    untrusted = _load_skops_function("get_untrusted_types")(data=content)
    if untrusted:
        raise OutputError(
            f"a {head} head cannot be saved: it holds {', '.join(untrusted[:3])}, which would "
            "not be loaded again, as only scikit-learn's own kinds are"
        )
    return np.frombuffer(content, np.uint8)


def read_network_tensors(network: Path | None) -> dict[str, np.ndarray]:
    """Read the tensors of a network that was fine-tuned with its head.

    Parameters
    ----------
    network : Path, or None
        The head's file.

    Returns
    -------
    dict of str to array
        By name, with `NETWORK_PREFIX`; empty without a network.
    """
    if network is None:
        return {}
    with safe_open(network, "np") as file:
        return {k: file.get_tensor(k) for k in file.keys() if k.startswith(NETWORK_PREFIX)}  # noqa: SIM118


def load_estimator(file: Any, name: str) -> Any:
    """Build an object of scikit-learn from bytes, after all its types are checked.

    Parameters
    ----------
    file : safetensors file
    name : str
        Name of the array of bytes.

    Returns
    -------
    object

    Raises
    ------
    HeadFileError
        If it is too large, or holds what is not loaded from a file.
    """
    data = np.asarray(file.get_tensor(name)).tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
            raise HeadFileError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 30} GB")
    untrusted = _load_skops_function("get_untrusted_types")(data=data)
    if untrusted:
        raise HeadFileError(f"it holds {', '.join(untrusted[:3])}, which is not loaded from a file")
    model = _load_skops_function("loads")(data, trusted=[])
    return model


def _load_skops_function(name: str) -> Callable[..., Any]:
    """Return a function of skops.io, an extra that linear heads do not need.

    Raises
    ------
    OutputError
        If skops is not installed.
    """
    try:
        return getattr(import_module("skops.io"), name)  # type: ignore[no-any-return]
    except ImportError as error:
        raise OutputError(
            "heads that are not linear are saved by skops: pip install 'headgraft[skops]', or "
            "use softmax, linear-svm, ridge, lda or ncm"
        ) from error


def read_array(file: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an array of finite numbers.

    Parameters
    ----------
    file : safetensors file
    name : str
    shape : tuple of int

    Returns
    -------
    float32 or float64 array

    Raises
    ------
    HeadFileError
        If it has another type or shape, or is not finite.
    """
    view = file.get_slice(name)
    if tuple(view.get_shape()) != shape or view.get_dtype() not in ("F32", "F64"):
        raise HeadFileError(
            f"array {name} is {view.get_dtype()} of shape {tuple(view.get_shape())}, "
            f"not F32 or F64 of shape {shape}"
        )
    array = np.asarray(file.get_tensor(name))
    if not np.isfinite(array).all():
        raise HeadFileError(f"array {name} is not finite")
    return array


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    return type(value) in (int, float) and math.isfinite(value)


def is_number_dict(value: Any) -> bool:
    """Tell whether a value is a dict of finite numbers.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    return isinstance(value, dict) and all(is_number(x) for x in value.values())


def is_text(value: Any) -> bool:
    """Tell whether a value is a text that can be written.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    # JSON allows lone surrogates, which cannot be encoded for a file or a terminal.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_class_list(value: Any) -> bool:
    """Tell whether a value is a list of two or more different names.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(is_text(name) and len(name) <= MAX_CLASS_NAME_CHARS for name in value)
        and len(set(value)) == len(value)
    )


def is_layer_list(value: Any) -> bool:
    """Tell whether a value is a list of layers as heads describe them.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    texts = {"name", "layer", "pool", "dtype", "fingerprint"}
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(layer, dict)
            and layer.keys() == texts | {"dim"}
            and all(is_text(layer[name]) for name in texts)
            and layer["dtype"] in LAYER_DTYPES
            and type(layer["dim"]) is int
            and layer["dim"] > 0
            for layer in value
        )
    )
