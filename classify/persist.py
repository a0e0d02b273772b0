"""Save and load heads: one safetensors file of arrays with JSON beside them. No pickle.

Loading runs no code from the file and believes nothing in it before it is checked.
"""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from classify.errors import HeadFileError, OutputError
from classify.fitted import FittedHead, HeadLayer, Source

FORMAT = "headgraft-head"
VERSION = (1, 0)
MAX_BYTES = 1 << 30
ARRAYS = ("mean", "scale", "coef", "intercept")
TEXTS = ("head", "task", "backbone", "weights", "weights_sha256", "precision")


def save_head(head: FittedHead, path: str | os.PathLike[str]) -> None:
    """Write a head to one file; an older head there is replaced at once or not at all.

    Parameters
    ----------
    path : path

    Raises
    ------
    OutputError
        If it cannot be written, or something that is not a head is there already.
    """
    check_target(path)
    path = Path(os.path.realpath(path))  # a link stays a link
    source = asdict(head.source)
    about = {name: getattr(head, name) for name in ("head", "classes", "C", "task")}
    about |= source | {"record": dict(head.record)}
    metadata = {"format": FORMAT, "version": ".".join(map(str, VERSION))}
    metadata |= {name: json.dumps(value, allow_nan=False) for name, value in about.items()}
    arrays = {name: np.ascontiguousarray(getattr(head, name)) for name in ARRAYS}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a place where a head cannot be saved, before any work is done for it.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is not a head.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or _is_head(path))):
        raise OutputError(f"{path} exists and is not a head; give another -o, or remove it")


def _is_head(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except Exception:  # whatever it is, it is no head
        return False


def load_head(path: str | os.PathLike[str]) -> FittedHead:
    """Read a head that `save_head` wrote.

    Returns
    -------
    FittedHead
        It predicts as the scikit-learn estimator did that it was made from.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If it is not a head, is damaged, or is of a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"head {path} does not exist; make one with `classify fit`")
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise HeadFileError(f"{path} is no file, or one of over {MAX_BYTES >> 30} GB: not a head")
    try:
        with safe_open(path, "np") as file:
            return _read(file)
    except HeadFileError as error:
        raise HeadFileError(f"{path}: {error}") from error
    except PermissionError:
        raise
    except Exception as error:  # hostile bytes make the parsers raise anything
        raise HeadFileError(f"{path} is not a head, or is damaged: {error}") from error


def _read(file: Any) -> FittedHead:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise HeadFileError("is not a head (no format entry of ours)")
    version = metadata.get("version", "")
    if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) > VERSION[0]:
        raise HeadFileError(f"version {version!r} is unknown to this Headgraft; upgrade it")

    def value(name: str, fits: Callable[[Any], bool]) -> Any:
        if name not in metadata:
            raise HeadFileError(f"{name} is missing")
        found = json.loads(metadata[name])
        if not fits(found):
            raise HeadFileError(f"{name} is not what it should be")
        return found

    texts = {name: value(name, _is_text) for name in TEXTS}
    classes = value("classes", _are_classes)
    C = value("C", lambda x: isinstance(x, (int, float)) and math.isfinite(x) and x > 0)
    layers = tuple(HeadLayer(**layer) for layer in value("layers", _are_layers))
    preprocess = value("preprocess", lambda x: isinstance(x, dict))
    record = value("record", lambda x: isinstance(x, dict))

    rows, dim = len(classes) if len(classes) > 2 else 1, sum(layer.dim for layer in layers)
    shapes = {"mean": (dim,), "scale": (dim,), "coef": (rows, dim), "intercept": (rows,)}
    if set(file.keys()) != set(shapes):
        raise HeadFileError(
            f"it holds the arrays {', '.join(file.keys())}, not {', '.join(shapes)}"
        )
    mean, scale, coef, intercept = (_array(file, name, shapes[name]) for name in shapes)
    if not (scale > 0).all():
        raise HeadFileError("scale is not positive everywhere")
    head, task = texts.pop("head"), texts.pop("task")
    source = Source(**texts, preprocess=preprocess, layers=layers)
    return FittedHead(head, classes, mean, scale, coef, intercept, float(C), task, source, record)


def _array(file: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(map(_is_text, value))
        and len(set(value)) == len(value)
    )


def _are_layers(value: Any) -> bool:
    texts = {"name", "layer", "pool", "dtype", "fingerprint"}
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(layer, dict)
            and layer.keys() == texts | {"dim"}
            and all(isinstance(layer[name], str) for name in texts)
            and type(layer["dim"]) is int
            and layer["dim"] > 0
            for layer in value
        )
    )
