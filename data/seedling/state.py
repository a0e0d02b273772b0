"""What a training writes: the weights so far, and beside them what it needs to go on.

The state is a safetensors file like the weights, ``OUTPUT.state``: float32 parameters, the
optimiser's moments, the store of pictures and the state of the random numbers. Both files appear
whole, under a temporary name first.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

__all__ = ["forget_state", "keep_state", "read_state", "take_up", "write"]


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def write_whole(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a safetensors file so that no reader ever sees half of it."""
    draft = beside(path, ".part")
    draft.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, notes))
    os.replace(draft, path)


def write(network: nn.Module, path: Path, notes: dict[str, str]) -> None:
    """Write the weights as float16."""
    tensors = {name: value.half() if value.is_floating_point() else value
               for name, value in network.state_dict().items()}  # fmt: skip
    write_whole(path, tensors, notes)


def keep_state(
    path: Path, pupil: Any, optimiser: torch.optim.Optimizer, store: Any, notes: dict[str, str],
    done: int,
) -> None:  # fmt: skip
    """Write the weights after ``done`` steps, and all that the next step depends on."""
    notes = {**notes, "done": str(done)}
    tensors = {f"pupil.{name}": value for name, value in pupil.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
    tensors |= {"store": store.pictures, "random": store.g.get_state()}
    write(pupil.network, path, notes)
    write_whole(beside(path, ".state"), tensors, notes)


def read_state(path: Path, notes: dict[str, str]) -> tuple[int, dict[str, Tensor]]:
    """Read the state beside ``path``, if there is one.

    Returns
    -------
    done : int
        How many steps are done.
    tensors : dict of Tensor
        What ``take_up`` wants; empty where there is no state.

    Raises
    ------
    SystemExit
        If the state is that of other settings.
    """
    file = beside(path, ".state")
    if not file.exists():
        return 0, {}
    with safe_open(file, "pt") as content:
        found = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    done = int(found.pop("done"))
    if found != notes:
        raise SystemExit(
            f"{file} is the state of another training: {json.dumps(found)}. "
            "Give the same options to go on with it, or remove it to begin anew."
        )
    return done, tensors


def take_up(
    tensors: dict[str, Tensor], pupil: nn.Module, optimiser: torch.optim.Optimizer, store: Any
) -> None:
    """Bring a training to where the state was kept."""
    state: dict[str, Any] = optimiser.state_dict()
    for name, value in part(tensors, "optimiser.").items():
        index, key = name.split(".")
        if value.ndim == 4:
            # The parameters' own order in memory: vector and scalar loops may round differently.
            value = value.contiguous(memory_format=torch.channels_last)
        state["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(state)
    pupil.load_state_dict(part(tensors, "pupil."))
    store.pictures = tensors["store"].to(store.pictures.device)
    store.g.set_state(tensors["random"])


def forget_state(path: Path) -> None:
    """Remove the state of a finished training."""
    beside(path, ".state").unlink(missing_ok=True)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    chosen = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in chosen.items()}
