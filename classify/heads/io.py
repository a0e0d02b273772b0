"""Save and load heads: one safetensors file of arrays with JSON metadata. No pickle.

A linear head is four arrays, a head with one hidden layer is six. A network that was fine-tuned
with its head is in the same file, its tensors as ``network.NAME``; that file is a backbone as well.
Other heads are scikit-learn objects, which skops converts to bytes and back, and an array that is
added to their decision values. Only types that skops itself trusts are ever built. Loading runs no
code from the file and checks every value before it is used.

Version 1.1 adds the preparation of features. With ``root-l2`` the scale is a single number, and the
bytes of a scikit-learn object have another name, so that a release without preparations refuses
such a file and reads all others. The same holds for an array added to the decision values of a
scikit-learn object.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.pipeline import Pipeline

from classify.data.preparation import PREPARATIONS, ROOT_L2, STANDARDISE
from classify.errors import HeadFileError, OutputError
from classify.heads.fitted import FeatureSource, FittedHead, HeadLayer
from classify.heads.models import SMOOTHING_ATTR, LinearModel, MLPModel, SklearnModel
from featurize.files import atomic_write, check_target
from featurize.images.preprocess import Preprocess

FORMAT = "headgraft-head"
VERSION = (1, 1)
MAX_FILE_BYTES = 4 << 30  # a file with a network in it
MAX_UNPACKED_BYTES = 1 << 30
NETWORK_PREFIX = "network."
ESTIMATOR_KEYS = {STANDARDISE: "skops", ROOT_L2: "skops-root-l2"}
OFFSET_KEY, SEEN_KEY = "offset", "seen"
HEAD_FIELDS = ("head", "classes", "prepare", "probabilistic", "temperature", "task")
LAYER_DTYPES = ("<f4", "<f2")
MAX_CLASS_NAME_CHARS = 131_072  # the limit of a cell in Python's csv module
# Fine-tuned heads list it so since the first release, and their bytes stay the same.
TUNED_PREPROCESS_KEYS = ("resize", "crop", "interpolation", "mean", "std", "decode", "fit")
TEXT_FIELDS = ("head", "task", "backbone", "weights", "weights_sha256", "precision")


def save_head(
    head: FittedHead,
    path: str | os.PathLike[str],
    network: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Save a head to one file. An older head there is replaced atomically.

    Parameters
    ----------
    head : FittedHead
        The trained head.
    path : path
        The output file.
    network : mapping of str to array, optional
        Tensors of the network that was fine-tuned with the head. If not given, the network that the
        head was loaded with is saved again.

    Raises
    ------
    OutputError
        If the file cannot be written, exists and is not a head, or if the head has objects that
        would not be loaded again.
    """
    path = check_head_file(path)
    preprocess = head.source.preprocess.to_dict()
    if network is not None or head.network is not None:
        preprocess = {key: preprocess[key] for key in TUNED_PREPROCESS_KEYS if key in preprocess}
    values = {name: getattr(head, name) for name in HEAD_FIELDS}
    values |= asdict(head.source) | {"preprocess": preprocess}
    if not head.source.licence:
        del values["licence"]
    values |= {"settings": dict(head.settings), "record": dict(head.record)}
    metadata = {"format": FORMAT, "version": ".".join(map(str, VERSION))}
    metadata |= {name: json.dumps(value, allow_nan=False) for name, value in values.items()}
    arrays = _to_arrays(head) | {SEEN_KEY: head.seen.astype(np.uint64)}
    arrays |= (
        _read_network_tensors(head)
        if network is None
        else {NETWORK_PREFIX + k: v for k, v in network.items()}
    )
    content = save(arrays, metadata)
    with atomic_write(path, error=OutputError) as file:
        file.write(content)


def check_head_file(path: str | os.PathLike[str]) -> Path:
    """Check that a head can be saved to a path, before any work is done.

    Parameters
    ----------
    path : path
        The output file. An existing head may be replaced.

    Returns
    -------
    Path
        The file to write.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the file exists and is not a head.
    """
    return check_target(path, _is_head_file, "a head", OutputError)


def _is_head_file(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            return bool((file.metadata() or {}).get("format") == FORMAT)
    except Exception:  # unreadable files are no heads
        return False


def load_head(path: str | os.PathLike[str]) -> FittedHead:
    """Load a head that `save_head` wrote.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    FittedHead
        It gives the same decision values as the saved head.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If the file is not a head, is damaged, or has a newer version.
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
            head = _read_head(file)
            has_network = any(name.startswith(NETWORK_PREFIX) for name in file.keys())  # noqa: SIM118
            return replace(head, network=path.absolute()) if has_network else head
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


def _read_head(file: Any) -> FittedHead:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise HeadFileError("is not a head (no format entry of ours)")
    version = metadata.get("version", "")
    if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) > VERSION[0]:
        raise HeadFileError(f"version {version!r} is unknown to this Headgraft; upgrade it")

    def read_value(name: str, is_valid: Callable[[Any], bool]) -> Any:
        if name not in metadata:
            raise HeadFileError(f"{name} is missing")
        value = _parse_json(metadata[name])
        if not is_valid(value):
            raise HeadFileError(f"{name} is not what it should be")
        return value

    texts = {name: read_value(name, _is_text) for name in TEXT_FIELDS}
    classes = read_value("classes", _is_class_list)
    probabilistic = read_value("probabilistic", lambda x: isinstance(x, bool))
    temperature = read_value("temperature", lambda x: x is None or (_is_number(x) and x > 0))
    settings = read_value("settings", _is_number_dict)
    layers = tuple(HeadLayer(**layer) for layer in read_value("layers", _is_layer_list))
    preprocess = Preprocess.from_dict(read_value("preprocess", lambda x: isinstance(x, dict)))
    record = read_value("record", lambda x: isinstance(x, dict))

    prepare = STANDARDISE  # version 1.0 had no other preparation
    if "prepare" in metadata:
        prepare = read_value("prepare", lambda x: x in PREPARATIONS)
    K, dim = len(classes), sum(layer.dim for layer in layers)
    names = {name for name in file.keys() if not name.startswith(NETWORK_PREFIX)} - {SEEN_KEY}  # noqa: SIM118
    estimator_key = ESTIMATOR_KEYS[prepare]
    if estimator_key in names and names <= {estimator_key, OFFSET_KEY}:
        scorer: LinearModel | MLPModel | SklearnModel = _read_sklearn_model(
            file, estimator_key, K, dim
        )
    else:
        scorer = _read_array_model(file, names, K, dim, prepare)
    head, task = texts.pop("head"), texts.pop("task")
    licence = read_value("licence", _is_text) if "licence" in metadata else ""
    source = FeatureSource(**texts, preprocess=preprocess, layers=layers, licence=licence)
    return FittedHead(
        head,
        classes,
        prepare,
        scorer,
        probabilistic,
        temperature,
        settings,
        task,
        source,
        record,
        _read_seen(file),
    )


def _read_array_model(
    file: Any, names: set[str], K: int, dim: int, prepare: str
) -> LinearModel | MLPModel:
    shapes: dict[str, tuple[int, ...]]
    scale_shape = (1,) if prepare == ROOT_L2 else (dim,)
    shapes = {"mean": (dim,), "scale": scale_shape, "coef": (K, dim), "intercept": (K,)}
    model_class: type[LinearModel] | type[MLPModel] = LinearModel
    if "hidden" in names:
        n_hidden = int(file.get_slice("hidden").get_shape()[0])
        shapes |= {"hidden": (n_hidden, dim), "bias": (n_hidden,), "coef": (K, n_hidden)}
        model_class = MLPModel
    if names != set(shapes):
        raise HeadFileError(
            f"it holds the arrays {', '.join(sorted(names))}, not {', '.join(shapes)}"
        )
    arrays = {name: _read_array(file, name, shapes[name]) for name in shapes}
    arrays["scale"] = np.broadcast_to(arrays["scale"], dim).copy()
    scorer = model_class(**arrays)
    if not (scorer.scale > 0).all():
        raise HeadFileError("scale is not positive everywhere")
    return scorer


def _read_seen(file: Any) -> np.ndarray:
    if SEEN_KEY not in file.keys():  # noqa: SIM118 - the file is no mapping
        raise HeadFileError("it does not say which images it was trained on")
    view = file.get_slice(SEEN_KEY)
    if view.get_dtype() != "U64" or len(view.get_shape()) != 1:
        raise HeadFileError("the list of images it was trained on is not one of 64-bit numbers")
    return np.asarray(file.get_tensor(SEEN_KEY))


def _to_arrays(head: FittedHead) -> dict[str, np.ndarray]:
    if not isinstance(head.scorer, SklearnModel):
        arrays = {field.name: getattr(head.scorer, field.name) for field in fields(head.scorer)}
        if head.prepare == ROOT_L2:
            arrays["scale"] = arrays["scale"][:1]
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    untrusted = _load_skops_function("get_untrusted_types")(
        data=_load_skops_function("dumps")(head.scorer.estimator)
    )
    if untrusted:
        raise OutputError(
            f"a {head.head} head cannot be saved: it holds {', '.join(untrusted[:3])}, which would "
            "not be loaded again, as only scikit-learn's own kinds are"
        )
    arrays = {
        ESTIMATOR_KEYS[head.prepare]: np.frombuffer(
            _load_skops_function("dumps")(head.scorer.estimator), np.uint8
        )
    }
    return arrays if head.scorer.offset is None else arrays | {OFFSET_KEY: head.scorer.offset}


def _read_network_tensors(head: FittedHead) -> dict[str, np.ndarray]:
    if head.network is None:
        return {}
    with safe_open(head.network, "np") as file:
        return {k: file.get_tensor(k) for k in file.keys() if k.startswith(NETWORK_PREFIX)}  # noqa: SIM118


def _read_sklearn_model(file: Any, name: str, n_classes: int, dim: int) -> SklearnModel:
    """Build a scikit-learn classifier from bytes, after all its types are checked."""
    data = np.asarray(file.get_tensor(name)).tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED_BYTES:
            raise HeadFileError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 30} GB")
    untrusted = _load_skops_function("get_untrusted_types")(data=data)
    if untrusted:
        raise HeadFileError(f"it holds {', '.join(untrusted[:3])}, which is not loaded from a file")
    model = _load_skops_function("loads")(data, trusted=[])
    classes = np.asarray(getattr(model, "classes_", None))
    if not isinstance(model, Pipeline) or not np.array_equal(classes, np.arange(n_classes)):
        raise HeadFileError("the classifier in it does not belong to its classes")
    if getattr(model, "n_features_in_", None) != dim:
        raise HeadFileError("the classifier in it does not belong to its layers")
    smoothing = getattr(model[-1], SMOOTHING_ATTR, 1)
    if not (_is_number(smoothing) and smoothing > 0):
        raise HeadFileError("its neighbours' counts are smoothed by what is no number")
    offset = _read_array(file, OFFSET_KEY, (n_classes,)) if OFFSET_KEY in file.keys() else None  # noqa: SIM118
    return SklearnModel(model, dim, n_classes, offset)


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


def _read_array(file: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
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


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_number_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(x) for x in value.values())


def _is_text(value: Any) -> bool:
    # JSON allows lone surrogates, which cannot be encoded for a file or a terminal.
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_class_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(_is_text(name) and len(name) <= MAX_CLASS_NAME_CHARS for name in value)
        and len(set(value)) == len(value)
    )


def _is_layer_list(value: Any) -> bool:
    texts = {"name", "layer", "pool", "dtype", "fingerprint"}
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(layer, dict)
            and layer.keys() == texts | {"dim"}
            and all(_is_text(layer[name]) for name in texts)
            and layer["dtype"] in LAYER_DTYPES
            and type(layer["dim"]) is int
            and layer["dim"] > 0
            for layer in value
        )
    )
