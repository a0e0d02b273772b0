"""A training that can go on after a kill: one file, replaced after every epoch.

It is written by `torch.save` and read without running code in it (``weights_only``). It holds no
optimiser options and no schedule: those follow from the options of the training and the number of
its epochs, so that a file cannot change them. Version 0.1 wrote safetensors, which are still read.
"""

import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.optim import Optimizer

from classify.errors import OutputError
from classify.finetuning.network import FineTuneNetwork
from featurize.backbones.weights import refuse_compressed
from featurize.files import atomic_write, check_target

FORMAT = "headgraft-training"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER_BYTES = 1 << 20  # read to find out whether a file is a checkpoint
MAX_OTHER_BYTES = 64 << 20  # of a checkpoint, beside the numbers of its tensors
ADAM_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")  # of each parameter, in AdamW's state
EPOCH_FIELDS = {"number", "loss", "validation_loss", "validation", "seconds"}
OLD_PARTS = {"learnt": "model", "best": "best_model"}  # names in files of version 0.1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch.

    Attributes
    ----------
    model, best_model : dict of str to Tensor
        What training changes: now, and after its best epoch.
    optimizer : dict of int to dict of str to Tensor
        The ``state`` of the optimiser's ``state_dict``.
    history : list of dict
        The epochs so far.
    """

    model: dict[str, Tensor]
    best_model: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    history: list[dict[str, Any]]

    def restore_optimizer(self, optimizer: Optimizer) -> None:
        """Give a new optimiser the state of the saved one."""
        optimizer.load_state_dict(optimizer.state_dict() | {"state": self.optimizer})


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path where a checkpoint cannot be written, before any work is done for it.

    Returns
    -------
    Path
        Where to write it.

    Raises
    ------
    OutputError
        If the folder is missing or closed, or the file there is not a checkpoint.
    """
    return check_target(path, _is_checkpoint, "an unfinished training", OutputError)


def _is_checkpoint(path: Path) -> bool:
    """By its beginning alone, which a file that was cut short still has."""
    try:
        with open(path, "rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError:
        return False
    # A zip archive of torch, or a safetensors file: a length of eight bytes, then JSON.
    is_own_kind = (start.startswith(ZIP_MAGIC) and b"data.pkl" in start[:256]) or start[8:9] == b"{"
    return is_own_kind and FORMAT.encode() in start


def save_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one before is replaced at once or not at all.

    Parameters
    ----------
    path : Path
        As `check_checkpoint_path` returns it.
    key : str
        A digest of what is trained, and how.
    checkpoint : Checkpoint

    Raises
    ------
    OutputError
    """
    content = {  # the format first, for `_is_checkpoint`
        "format": FORMAT,
        "key": key,
        "model": _to_cpu(checkpoint.model),
        "best_model": _to_cpu(checkpoint.best_model),
        "optimizer": {i: _to_cpu(state) for i, state in checkpoint.optimizer.items()},
        "history": checkpoint.history,
    }
    data = BytesIO()  # torch's own writing to a full disk ends in an error of no use
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
    key : str
        A digest of what is trained, and how.
    net : FineTuneNetwork
        What is trained. A file with tensors of other names or shapes is not taken.

    Returns
    -------
    Checkpoint, or None
        None where there is none, it is damaged, or of another training.
    """
    optimizer = {
        i: {
            name: tensor.new_zeros(()) if name == "step" else tensor.detach()
            for name in ADAM_STATE_KEYS
        }
        for i, tensor in enumerate(net.trainable_parameters().values())
    }
    state = net.trainable_state()
    form = {"model": state, "best_model": state, "optimizer": optimizer}
    try:
        if path.stat().st_size > _count_bytes(form) + MAX_OTHER_BYTES:
            return None
        content = _read(path)
        if content.pop("format") != FORMAT or content.pop("key") != key:
            return None
        history = content.pop("history")
        if not (_has_form(content, form) and _is_history(history)):
            return None
        return Checkpoint(**content, history=history)
    except Exception:  # absent, or hostile bytes: the training begins anew
        return None


def _read(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, now or in version 0.1; nothing is checked yet."""
    if zipfile.is_zipfile(path):
        refuse_compressed(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    content: dict[str, Any] = {"model": {}, "best_model": {}, "optimizer": {}}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for entry in file.keys():  # noqa: SIM118 - the file is no mapping
            part, _, name = entry.partition("/")
            if part == "moments":
                i, _, name = name.partition(".")
                content["optimizer"].setdefault(int(i), {})[name] = file.get_tensor(entry)
            else:
                content[OLD_PARTS[part]][name] = file.get_tensor(entry)
    content["history"] = json.loads(metadata["history"])
    return content | {name: metadata[name] for name in ("format", "key")}


def _has_form(value: Any, form: Any) -> bool:
    """Whether a value has the keys of another, and tensors of the same types and shapes."""
    if isinstance(form, dict):
        return (
            type(value) is dict
            and value.keys() == form.keys()
            and all(_has_form(value[key], form[key]) for key in form)
        )
    return (
        isinstance(value, Tensor)
        and (value.dtype, value.layout, value.shape) == (form.dtype, torch.strided, form.shape)
        and value.device.type == "cpu"
        and 0 not in value.stride()  # the same number many times cannot be written to
    )


def _count_bytes(form: Any) -> int:
    """The bytes of all tensors in a dict of dicts."""
    if isinstance(form, dict):
        return sum(map(_count_bytes, form.values()))
    return int(form.numel() * form.element_size())


def _is_history(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(epoch, dict)
            and epoch.keys() == EPOCH_FIELDS
            and all(type(x) in (int, float) and math.isfinite(x) for x in epoch.values())
            for epoch in value
        )
    )
