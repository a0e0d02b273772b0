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

Version 1.2 adds doubt: the entry ``doubt``, and arrays ``novelty.NAME``, which older releases
refuse. See `classify.heads.files.doubt`. A head without doubt is saved as version 1.1.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.pipeline import Pipeline

from classify.data.preparation import PREPARATIONS, ROOT_L2, STANDARDISE
from classify.errors import HeadFileError, OutputError
from classify.heads.files.doubt import (
    DOUBT_PREFIX,
    describe_doubt,
    list_doubt_arrays,
    read_doubt,
)
from classify.heads.files.values import (
    FORMAT,
    NETWORK_PREFIX,
    SEEN_KEY,
    VERSION,
    dump_estimator,
    is_class_list,
    is_layer_list,
    is_number,
    is_number_dict,
    is_text,
    load_estimator,
    open_head_file,
    read_array,
    read_network_tensors,
    read_seen,
    read_value,
)
from classify.heads.fitted import FittedHead
from classify.heads.models import SMOOTHING_ATTR, LinearModel, MLPModel, SklearnModel
from classify.heads.source import FeatureSource, HeadLayer
from featurize.files import atomic_write, check_target
from featurize.images.preprocess import Preprocess

ESTIMATOR_KEYS = {STANDARDISE: "skops", ROOT_L2: "skops-root-l2"}
OFFSET_KEY = "offset"
VERSION_WITHOUT_DOUBT = (1, 1)  # heads of older releases are saved again as they were
OTHER_PREFIXES = (NETWORK_PREFIX, DOUBT_PREFIX)
HEAD_FIELDS = ("head", "classes", "prepare", "probabilistic", "temperature", "task")
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
    doubt = describe_doubt(head)
    values |= doubt
    version = VERSION if doubt else VERSION_WITHOUT_DOUBT
    metadata = {"format": FORMAT, "version": ".".join(map(str, version))}
    metadata |= {name: json.dumps(value, allow_nan=False) for name, value in values.items()}
    arrays = (
        _to_arrays(head) | list_doubt_arrays(head.novelty) | {SEEN_KEY: head.seen.astype(np.uint64)}
    )
    arrays |= (
        read_network_tensors(head.network)
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
    with open_head_file(path) as (file, metadata):
        head = _read_head(file, metadata)
        has_network = any(name.startswith(NETWORK_PREFIX) for name in file.keys())  # noqa: SIM118
        return replace(head, network=Path(path).absolute()) if has_network else head


def _read_head(file: Any, metadata: Mapping[str, str]) -> FittedHead:
    read_own = partial(read_value, metadata)
    texts = {name: read_own(name, is_text) for name in TEXT_FIELDS}
    classes = read_own("classes", is_class_list)
    probabilistic = read_own("probabilistic", lambda x: isinstance(x, bool))
    temperature = read_own("temperature", lambda x: x is None or (is_number(x) and x > 0))
    settings = read_own("settings", is_number_dict)
    layers = tuple(HeadLayer(**layer) for layer in read_own("layers", is_layer_list))
    preprocess = Preprocess.from_dict(read_own("preprocess", lambda x: isinstance(x, dict)))
    record = read_own("record", lambda x: isinstance(x, dict))

    prepare = STANDARDISE  # version 1.0 had no other preparation
    if "prepare" in metadata:
        prepare = read_own("prepare", lambda x: x in PREPARATIONS)
    K, dim = len(classes), sum(layer.dim for layer in layers)
    names = {name for name in file.keys() if not name.startswith(OTHER_PREFIXES)} - {SEEN_KEY}  # noqa: SIM118
    estimator_key = ESTIMATOR_KEYS[prepare]
    if estimator_key in names and names <= {estimator_key, OFFSET_KEY}:
        scorer: LinearModel | MLPModel | SklearnModel = read_sklearn_model(
            file, estimator_key, K, dim
        )
    else:
        scorer = read_array_model(file, names, K, dim, prepare)
    head, task = texts.pop("head"), texts.pop("task")
    licence = read_own("licence", is_text) if "licence" in metadata else ""
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
        read_seen(file),
        **read_doubt(file, metadata, dim),
    )


def read_array_model(
    file: Any, names: set[str], K: int, dim: int, prepare: str
) -> LinearModel | MLPModel:
    """Read a linear model or a perceptron.

    Parameters
    ----------
    file : safetensors file
    names : set of str
        The arrays of the model.
    K, dim : int
        Numbers of outputs and of features.
    prepare : str

    Returns
    -------
    LinearModel or MLPModel

    Raises
    ------
    HeadFileError
        If the arrays are not those of such a model.
    """
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
    arrays = {name: read_array(file, name, shapes[name]) for name in shapes}
    arrays["scale"] = np.broadcast_to(arrays["scale"], dim).copy()
    scorer = model_class(**arrays)
    if not (scorer.scale > 0).all():
        raise HeadFileError("scale is not positive everywhere")
    return scorer


def _to_arrays(head: FittedHead) -> dict[str, np.ndarray]:
    if not isinstance(head.scorer, SklearnModel):
        arrays = {field.name: getattr(head.scorer, field.name) for field in fields(head.scorer)}
        if head.prepare == ROOT_L2:
            arrays["scale"] = arrays["scale"][:1]
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    arrays = {ESTIMATOR_KEYS[head.prepare]: dump_estimator(head.scorer.estimator, head.head)}
    return arrays if head.scorer.offset is None else arrays | {OFFSET_KEY: head.scorer.offset}


def read_sklearn_model(file: Any, name: str, n_classes: int, dim: int) -> SklearnModel:
    """Build a scikit-learn classifier from bytes, after all its types are checked.

    Parameters
    ----------
    file : safetensors file
    name : str
        Name of the array of bytes.
    n_classes, dim : int

    Returns
    -------
    SklearnModel

    Raises
    ------
    HeadFileError
        If it does not belong to these classes and columns.
    """
    model = load_estimator(file, name)
    classes = np.asarray(getattr(model, "classes_", None))
    if not isinstance(model, Pipeline) or not np.array_equal(classes, np.arange(n_classes)):
        raise HeadFileError("the classifier in it does not belong to its classes")
    if getattr(model, "n_features_in_", None) != dim:
        raise HeadFileError("the classifier in it does not belong to its layers")
    smoothing = getattr(model[-1], SMOOTHING_ATTR, 1)
    if not (is_number(smoothing) and smoothing > 0):
        raise HeadFileError("its neighbours' counts are smoothed by what is no number")
    offset = read_array(file, OFFSET_KEY, (n_classes,)) if OFFSET_KEY in file.keys() else None  # noqa: SIM118
    return SklearnModel(model, dim, n_classes, offset)
