"""Save heads for several labels, numbers and grades to one file, and load them.

The file is that of `classify.heads.io`, with the entry ``kind``, and ``names`` in place of
``classes``. Releases that know no kinds refuse it, as it names no classes.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sklearn.pipeline import Pipeline

from classify.data.preparation import PREPARATIONS, ROOT_L2
from classify.errors import HeadFileError, OutputError
from classify.heads import io as head_io
from classify.heads.files.values import (
    FORMAT,
    NETWORK_PREFIX,
    SEEN_KEY,
    dump_estimator,
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
from classify.heads.models import LinearModel, MLPModel, SklearnModel
from classify.heads.source import FeatureSource, HeadLayer
from classify.heads.targets.fitted import FittedTargets
from classify.heads.targets.models import EstimatorModel
from classify.kinds import GRADE, KINDS, MULTI, NUMBER
from featurize.files import atomic_write
from featurize.images.preprocess import Preprocess

VERSION = "1.2"
TEXT_FIELDS = (*head_io.TEXT_FIELDS, "kind", "prepare")
DECISION_ARRAYS = ("calibration", "thresholds", "cutpoints", "grades")
MAX_NAMES = 100_000


def save_target_head(
    head: FittedTargets,
    path: str | os.PathLike[str],
    network: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Save a head to one file. An older head there is replaced atomically.

    Parameters
    ----------
    head : FittedTargets
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
    path = head_io.check_head_file(path)
    preprocess = head.source.preprocess.to_dict()
    if network is not None or head.network is not None:
        keys = head_io.TUNED_PREPROCESS_KEYS
        preprocess = {key: preprocess[key] for key in keys if key in preprocess}
    names = ("head", "kind", "prepare", "task", "margin", "coverage")
    values: dict[str, Any] = {name: getattr(head, name) for name in names}
    values |= {"names": list(head.names), "model": _name_model(head.scorer)}
    values |= asdict(head.source) | {"preprocess": preprocess}
    values |= {"settings": dict(head.settings), "record": dict(head.record)}
    metadata = {"format": FORMAT, "version": VERSION}
    metadata |= {name: json.dumps(value, allow_nan=False) for name, value in values.items()}
    arrays = _list_model_arrays(head) | {SEEN_KEY: head.seen.astype(np.uint64)}
    for name in DECISION_ARRAYS:
        array = getattr(head, name)
        if array is not None:
            arrays[name] = np.ascontiguousarray(array, np.float64)
    if network is not None:
        arrays |= {NETWORK_PREFIX + key: tensor for key, tensor in network.items()}
    else:
        arrays |= read_network_tensors(head.network)
    content = save(arrays, metadata)
    with atomic_write(path, error=OutputError) as file:
        file.write(content)


def _name_model(model: object) -> str:
    kinds = {LinearModel: "linear", MLPModel: "mlp", EstimatorModel: "estimator"}
    return kinds.get(type(model), "classes")


def _list_model_arrays(head: FittedTargets) -> dict[str, np.ndarray]:
    model = head.scorer
    if isinstance(model, (LinearModel, MLPModel)):
        arrays = {field.name: getattr(model, field.name) for field in fields(model)}
        if head.prepare == ROOT_L2 and np.ptp(arrays["scale"]) == 0:
            arrays["scale"] = arrays["scale"][:1]
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    key = head_io.ESTIMATOR_KEYS[head.prepare]
    arrays = {key: dump_estimator(model.estimator, head.head)}
    if isinstance(model, SklearnModel) and model.offset is not None:
        arrays[head_io.OFFSET_KEY] = model.offset
    return arrays


def load_target_head(path: str | os.PathLike[str]) -> FittedTargets:
    """Load a head that `save_target_head` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    FittedTargets

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    HeadFileError
        If the file is not such a head, is damaged, or has a newer version.
    """
    with open_head_file(path) as (file, metadata):
        head = _read_head(file, metadata)
        has_network = any(key.startswith(NETWORK_PREFIX) for key in file.keys())  # noqa: SIM118
        return replace(head, network=Path(path).absolute()) if has_network else head


def _read_head(file: Any, metadata: Mapping[str, str]) -> FittedTargets:
    def read(name: str, is_valid: Callable[[Any], bool]) -> Any:
        return read_value(metadata, name, is_valid)

    texts = {name: read(name, is_text) for name in TEXT_FIELDS}
    kind, prepare = texts.pop("kind"), texts.pop("prepare")
    if kind not in KINDS[1:]:
        raise HeadFileError(f"labels of the kind {kind!r} are unknown to this Headgraft")
    if prepare not in PREPARATIONS:
        raise HeadFileError("prepare is not what it should be")
    names = tuple(read("names", lambda value: _is_name_list(value, kind)))
    margin, coverage = (read(name, _is_size_or_none) for name in ("margin", "coverage"))
    layers = tuple(HeadLayer(**layer) for layer in read("layers", is_layer_list))
    licence = read("licence", is_text) if "licence" in metadata else ""
    preprocess = Preprocess.from_dict(read("preprocess", lambda value: isinstance(value, dict)))
    head, task = texts.pop("head"), texts.pop("task")
    decided = _read_decision_arrays(file, kind, len(names))
    grades = decided["grades"]
    n_outputs = len(names) if kind == MULTI else 1 if grades is None else len(grades)
    dim = sum(layer.dim for layer in layers)
    return FittedTargets(
        head=head,
        kind=kind,
        names=names,
        prepare=prepare,
        scorer=_read_model(file, read("model", is_text), n_outputs, dim, prepare, decided),
        settings=read("settings", is_number_dict),
        task=task,
        source=FeatureSource(**texts, preprocess=preprocess, layers=layers, licence=licence),
        record=read("record", lambda value: isinstance(value, dict)),
        seen=read_seen(file),
        margin=margin,
        coverage=coverage,
        **decided,
    )


def _read_decision_arrays(file: Any, kind: str, n_names: int) -> dict[str, Any]:
    """Read the arrays by which outputs become labels, and check that they go with the kind."""
    shapes = {
        "calibration": (2, n_names),
        "thresholds": (n_names,),
        "cutpoints": (n_names - 1,),
    }
    present = set(file.keys())
    decided: dict[str, Any] = dict.fromkeys(DECISION_ARRAYS)
    for name, shape in shapes.items():
        if name in present:
            decided[name] = read_array(file, name, shape).astype(np.float64)
    if "grades" in present:
        shape = tuple(file.get_slice("grades").get_shape())
        grades = read_array(file, "grades", shape)
        is_valid = grades.ndim == 1 and len(grades) >= 2 and (np.diff(grades) > 0).all()
        if not (is_valid and np.isin(grades, np.arange(n_names)).all()):
            raise HeadFileError("its outputs are not those of its grades")
        decided["grades"] = grades.astype(np.intp)
    cutpoints = decided["cutpoints"]
    if cutpoints is not None and (np.diff(cutpoints) < 0).any():
        raise HeadFileError("its cutpoints are not in order")
    allowed = {MULTI: {"calibration", "thresholds"}, GRADE: {"cutpoints", "grades"}, NUMBER: set()}
    wrong = {name for name, array in decided.items() if array is not None} - allowed[kind]
    if wrong or (kind == GRADE and (cutpoints is None) == (decided["grades"] is None)):
        raise HeadFileError("its arrays do not go with its kind of labels")
    return decided


def _read_model(
    file: Any,
    model: str,
    n_outputs: int,
    dim: int,
    prepare: str,
    decided: Mapping[str, Any],
) -> LinearModel | MLPModel | EstimatorModel | SklearnModel:
    of_decision = {name for name, array in decided.items() if array is not None}
    names = {key for key in file.keys() if not key.startswith(NETWORK_PREFIX)}  # noqa: SIM118
    names -= {SEEN_KEY} | of_decision
    if model in ("linear", "mlp"):
        return head_io.read_array_model(file, names, n_outputs, dim, prepare)
    key = head_io.ESTIMATOR_KEYS[prepare]
    if model == "classes":
        return head_io.read_sklearn_model(file, key, n_outputs, dim)
    if model != "estimator" or names != {key}:
        raise HeadFileError("its model is of no known kind")
    estimator = load_estimator(file, key)
    if not isinstance(estimator, Pipeline) or getattr(estimator, "n_features_in_", None) != dim:
        raise HeadFileError("the estimator in it does not belong to its layers")
    return EstimatorModel(estimator, dim, n_outputs)


def _is_name_list(value: Any, kind: str) -> bool:
    least = {MULTI: 1, NUMBER: 1, GRADE: 2}[kind]
    return (
        isinstance(value, list)
        and least <= len(value) <= (1 if kind == NUMBER else MAX_NAMES)
        and all(is_text(name) for name in value)
        and len(set(value)) == len(value)
    )


def _is_size_or_none(value: Any) -> bool:
    return value is None or (is_number(value) and value >= 0)
