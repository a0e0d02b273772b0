"""A training that can go on after a kill: one safetensors file, replaced after every epoch."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from classify.errors import OutputError
from featurize.files import atomic_write, check_target

FORMAT = "headgraft-training"
MAX_HEADER_BYTES = 100 << 20  # as in safetensors
ADAM_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")  # that AdamW has of each parameter
EPOCH_FIELDS = {"number", "loss", "validation_loss", "validation", "seconds"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a training stands after an epoch.

    Attributes
    ----------
    learnt, best : dict of str to Tensor
        What training changes: now, and after its best epoch.
    moments : dict of str to Tensor
        The optimiser's, each as ``PARAMETER.NAME``.
    history : list of dict
        The epochs so far.
    """

    learnt: dict[str, Tensor]
    best: dict[str, Tensor]
    moments: dict[str, Tensor]
    history: list[dict[str, Any]]

    @classmethod
    def capture(
        cls,
        learnt: dict[str, Tensor],
        best: dict[str, Tensor],
        optimiser: Optimizer,
        history: list[dict[str, Any]],
    ) -> "Checkpoint":
        """Take it down."""
        state = optimiser.state_dict()["state"]
        moments = {f"{i}.{k}": value for i, held in state.items() for k, value in held.items()}
        return cls(learnt, best, moments, history)

    def restore_optimizer(self, optimiser: Optimizer) -> None:
        """Put an optimiser where it was."""
        whole = optimiser.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.moments.items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        optimiser.load_state_dict(whole | {"state": state})


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a place where a checkpoint cannot be written, before any work is done for it.

    Raises
    ------
    OutputError
    """
    return check_target(path, _is_checkpoint, "an unfinished training", OutputError)


def _is_checkpoint(path: Path) -> bool:
    """By its header alone, which a file that was cut short still has."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        return bool(header["__metadata__"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def save_checkpoint(path: Path, key: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one before is replaced at once or not at all."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in ("learnt", "best", "moments")
        for name, tensor in getattr(checkpoint, part).items()
    }
    metadata = {"format": FORMAT, "key": key, "history": json.dumps(checkpoint.history)}
    content = save(tensors, metadata)
    with atomic_write(path, error=OutputError) as file:
        file.write(content)


def load_checkpoint(
    path: Path, key: str, expected_state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> Checkpoint | None:
    """Read a checkpoint of the same training.

    Parameters
    ----------
    path : Path
    key : str
        What is trained, and how.
    like : mapping of str to Tensor
        What training changes: a file that holds anything else is not taken.
    parameters : mapping of str to Tensor
        The parameters among it, in the optimiser's order.

    Returns
    -------
    Checkpoint, or None
        None where there is none, it is damaged, or of another training.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != key:
                return None
            parts: dict[str, dict[str, Tensor]] = {"learnt": {}, "best": {}, "moments": {}}
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                part, _, inner = name.partition("/")
                parts[part][inner] = file.get_tensor(name)
        history = json.loads(metadata["history"])
    except Exception:  # absent, or hostile bytes: the training begins anew
        return None
    moments = {
        f"{i}.{name}": tensor.new_zeros(()) if name == "step" else tensor
        for i, tensor in enumerate(parameters.values())
        for name in ADAM_STATE_KEYS
    }
    wanted = {"learnt": expected_state, "best": expected_state, "moments": moments}
    if any(
        _describe_tensors(parts[part]) != _describe_tensors(tensors)
        for part, tensors in wanted.items()
    ):
        return None
    if not _is_history(history):
        return None
    return Checkpoint(parts["learnt"], parts["best"], parts["moments"], history)


def _describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}


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
