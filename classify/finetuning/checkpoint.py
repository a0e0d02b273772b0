"""Checkpoints: one file per training, replaced after every epoch, to resume after a kill.

The file is written by `torch.save` and read with ``weights_only``, which runs no code from it. It
holds neither optimiser options nor the schedule. Those follow from the options of the training and
the number of finished epochs, so a file cannot change them. Version 0.1 wrote safetensors, which
are still read.
"""

import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.optim import Optimizer

from classify.errors import OutputError
from classify.finetuning.datasets.activations import ActivationDataset
from classify.finetuning.datasets.images import ImageDataset
from classify.finetuning.network import FineTuneNetwork
from classify.heads.fitted import FittedHead
from classify.heads.targets.fitted import FittedTargets
from classify.store import compute_digest
from featurize.backbones.backbone import Backbone
from featurize.backbones.weights import refuse_compressed
from featurize.files import atomic_write, check_target

FORMAT = "headgraft-training"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER_BYTES = 1 << 20  # read to recognise a checkpoint
MAX_OTHER_BYTES = 64 << 20  # limit of a checkpoint's bytes other than tensor values
ADAM_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")  # for each parameter
EPOCH_FIELDS = {"number", "loss", "validation_loss", "validation", "seconds"}
OLD_PARTS = {"learnt": "model", "best": "best_model"}  # names in files of version 0.1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch.

    Attributes
    ----------
    model, best_model : dict of str to Tensor
        Trainable state: of the last epoch, and of the best one.
    optimizer : dict of int to dict of str to Tensor
        The ``state`` of the optimiser's ``state_dict``, by the place of each parameter among the
        network's trainable ones.
    history : list of dict
        Each finished `Epoch`, as a dict.
    """

    model: dict[str, Tensor]
    best_model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    history: list[dict[str, Any]]

    def restore_optimizer(self, optimizer: Optimizer, places: Sequence[int]) -> None:
        """Load the saved state into a new optimiser.

        Parameters
        ----------
        optimizer : Optimizer
            With the parameters of the saved one. It keeps its own options.
        places : sequence of int
            The place of each of its parameters among the network's trainable ones.
        """
        state = {number: self.optimizer[place] for number, place in enumerate(places)}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def compute_key(
    options: Mapping[str, Any],
    init_head: FittedHead | FittedTargets | None,
    backbone: Backbone,
    datasets: Sequence[ImageDataset | ActivationDataset],
    objective_key: Mapping[str, Any],
) -> str:
    """Digest everything that determines the result of a training.

    Parameters
    ----------
    options : mapping of str to object
        The parameters of the estimator.
    init_head : FittedHead or FittedTargets, optional
        The head to start from. It is linear.
    backbone : Backbone
        The network to tune.
    datasets : sequence of ImageDataset or ActivationDataset
        The training set and the validation set.
    objective_key : mapping of str to object
        What `classify.finetuning.objectives.objective.Objective.key` holds.

    Returns
    -------
    str
        The key of the training's checkpoints.
    """
    params = dict(options)
    del params["root"], params["device"]  # neither changes what the images show
    params["cache"] = params["cache"] is not None
    if params["lora"] is None:
        del params["lora"]  # so it was before there were adapters
    if init_head is not None:
        scorer = init_head.scorer
        arrays = [scorer.coef, scorer.intercept]  # type: ignore[union-attr]
        decided = (getattr(init_head, name, None) for name in ("calibration", "cutpoints"))
        arrays += [array for array in decided if array is not None]
        params["init_head"] = compute_digest(*arrays)
    params |= objective_key
    texts = {name: value if value is None else str(value) for name, value in params.items()}
    contents = [array for dataset in datasets for array in (dataset.sha256, dataset.y)]
    return compute_digest(texts, backbone.weights_sha256, *contents)


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path where a checkpoint cannot be written, before any training.

    Parameters
    ----------
    path : path
        Of a new file, or of a checkpoint to replace.

    Returns
    -------
    Path
        The path to write to.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the path holds something else.
    """
    return check_target(path, _is_checkpoint, "an unfinished training", OutputError)


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a file begins like a checkpoint, as a truncated one still does."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError:
        return False
    # A zip archive of torch, or a safetensors file: a length of eight bytes, then JSON.
    is_torch_zip = start.startswith(ZIP_MAGIC) and b"data.pkl" in start[:256]
    return (is_torch_zip or start[8:9] == b"{") and FORMAT.encode() in start


def save_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; the previous one is replaced.

    Parameters
    ----------
    path : Path
        As `check_checkpoint_path` returns it.
    key : str
        A digest of what is trained, and how.
    checkpoint : Checkpoint
        The state to save.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    content = {  # the format comes first, for `_is_checkpoint`
        "format": FORMAT,
        "key": key,
        "model": _to_cpu(checkpoint.model),
        "best_model": _to_cpu(checkpoint.best_model),
        "optimizer": {i: _to_cpu(state) for i, state in checkpoint.optimizer.items()},
        "history": checkpoint.history,
    }
    data = BytesIO()  # torch.save to a full disk fails with an unhelpful error
    torch.save(content, data)
    with atomic_write(path, error=OutputError) as file:
        file.write(data.getbuffer())


def _to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def load_checkpoint(path: Path, key: str, net: FineTuneNetwork) -> Checkpoint | None:
    """Read a checkpoint of the same training.

    Parameters
    ----------
    path : Path
        The file.
    key : str
        A digest of what is trained, and how.
    net : FineTuneNetwork
        The network to train. A file with tensors of other names or shapes is ignored.

    Returns
    -------
    Checkpoint, or None
        None if there is no file, or if it is damaged or of another training.
    """
    optimizer = {
        i: {
            name: tensor.new_zeros(()) if name == "step" else tensor.detach()
            for name in ADAM_STATE_KEYS
        }
        for i, tensor in enumerate(net.trainable_parameters().values())
    }
    state = net.trainable_state()
    template = {"model": state, "best_model": state, "optimizer": optimizer}
    try:
        if path.stat().st_size > _count_bytes(template) + MAX_OTHER_BYTES:
            return None
        content = _read(path)
        if content.pop("format") != FORMAT or content.pop("key") != key:
            return None
        history = content.pop("history")
        if not (_matches(content, template) and _is_history(history)):
            return None
        return Checkpoint(**content, history=history)
    except Exception:  # no file, or damaged or hostile bytes: train from the start
        return None


def _read(path: Path) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, or of version 0.1, without checking its content."""
    if zipfile.is_zipfile(path):
        refuse_compressed(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    content: dict[str, Any] = {"model": {}, "best_model": {}, "optimizer": {}}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for entry in file.keys():  # noqa: SIM118 - the file is not a mapping
            part, _, name = entry.partition("/")
            if part == "moments":
                i, _, name = name.partition(".")
                content["optimizer"].setdefault(int(i), {})[name] = file.get_tensor(entry)
            else:
                content[OLD_PARTS[part]][name] = file.get_tensor(entry)
    content["history"] = json.loads(metadata["history"])
    return content | {name: metadata[name] for name in ("format", "key")}


def _matches(value: Any, template: Any) -> bool:
    """Tell whether a value has the template's keys, and tensors of its types and shapes."""
    if isinstance(template, dict):
        return (
            type(value) is dict
            and value.keys() == template.keys()
            and all(_matches(value[key], template[key]) for key in template)
        )
    return (
        isinstance(value, Tensor)
        and (value.dtype, value.shape) == (template.dtype, template.shape)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and 0 not in value.stride()  # a broadcast tensor cannot be written to
    )


def _count_bytes(tree: Any) -> int:
    """Count the bytes of all tensors in a dict of dicts."""
    if isinstance(tree, dict):
        return sum(map(_count_bytes, tree.values()))
    return int(tree.numel() * tree.element_size())


def _is_history(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(epoch, dict)
            and epoch.keys() == EPOCH_FIELDS
            and all(
                type(x) in (int, float) and math.isfinite(x)
                for name, x in epoch.items()
                if (name, x) != ("validation", None)  # a metric that was undefined
            )
            for epoch in value
        )
    )
