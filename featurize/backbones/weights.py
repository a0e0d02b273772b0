"""Weights: from a local file or torchvision's downloads, checked, and put into a network."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from featurize.errors import BackboneError
from featurize.fingerprint import hash_weight_arrays
from featurize.text import to_printable

HEAD_FORMAT, NETWORK_PREFIX = "headgraft-head", "network."
"""A fine-tuned network lies in one file with its classifier: these are the network's tensors."""
MAX_EXPANSION = 16  # a file's bytes, in all its tensors together: some are shared
_WRAPPER_KEYS = ("state_dict", "model", "model_state_dict")
# DenseNet files from before torch 0.4.1 have dots where modules have none now.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.\w+)$")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a ``.safetensors``, ``.pth`` or ``.pt`` file; no code in it ever runs.

    A checkpoint's wrappings are taken off: ``state_dict`` around the tensors, ``module.``
    before their names.

    Returns
    -------
    tensors : dict of str to Tensor
    metadata : dict of str to str
        Of a safetensors file; else empty.

    Raises
    ------
    BackboneError
        If it is no such file, or holds no tensors.
    """
    if not path.is_file():
        raise BackboneError(f"no weights file {path}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix not in (".pth", ".pt"):
            content: Any = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        else:
            refuse_compressed(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise anything on hostile bytes
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"{path} cannot be read as weights: {first_line}. It has to be a .safetensors file, "
            "or a .pth file with a plain state dict (torch.save(network.state_dict(), FILE))"
        ) from error
    for wrapping in _WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
            content = content[wrapping]
    tensors = _extract_state_dict(content)
    _refuse_non_dense(path, tensors)
    if metadata.get("format") == HEAD_FORMAT:
        tensors = _extract_network(path, tensors, metadata)
    if not tensors:
        raise BackboneError(f"{path} holds no state dict: no tensors by name in it")
    return tensors, metadata


def refuse_compressed(path: Path) -> None:
    """Refuse an archive that grows when it is unpacked: torch stores, and does not compress.

    Raises
    ------
    ValueError
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"it is compressed, and has {size:,} bytes when it is unpacked")


def _refuse_non_dense(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that have no plain numbers, or more of them than the file can hold.

    A view may repeat a few bytes as often as it likes; every use of it would write them out.
    """
    size, taken = path.stat().st_size, 0
    for name, tensor in tensors.items():
        what = ""
        if tensor.is_nested or tensor.layout != torch.strided:
            what = "is sparse"
        elif tensor.is_quantized:
            what = "is quantised"
        elif tensor.device.type != "cpu":
            what = "has no numbers"
        elif tensor.numel() * tensor.element_size() > min(size, tensor.untyped_storage().nbytes()):
            what = f"repeats its numbers: {tuple(tensor.shape)} in a file of {size:,} bytes"
        elif (taken := taken + tensor.numel() * tensor.element_size()) > MAX_EXPANSION * size:
            what = "takes the same numbers as many others"
        if what:
            raise BackboneError(
                f"{path}: the tensor {to_printable(name)} {what}. Weights are plain tensors; save them "
                "with torch.save(network.state_dict(), FILE)"
            )


def _extract_network(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> dict[str, Tensor]:
    """The network's tensors of a file that holds a classifier too."""
    found = {
        k.removeprefix(NETWORK_PREFIX): v
        for k, v in tensors.items()
        if k.startswith(NETWORK_PREFIX)
    }
    if not found:
        raise BackboneError(
            f"{path} is a head alone, with no network in it; a backbone is a network's name, or a "
            "file made by `classify finetune`"
        )
    if hash_state_dict(found) != metadata.get("weights_sha256", "").strip('"'):
        raise BackboneError(
            f"{path} is damaged: its network is not the one it was saved with; make it anew"
        )
    return found


def _extract_state_dict(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in found.items()}


def fetch_weights(weights: Any) -> dict[str, Tensor]:
    """Fetch one of torchvision's weights, or take them from its local cache.

    Raises
    ------
    BackboneError
        If they cannot be downloaded.
    """
    try:
        return _extract_state_dict(
            weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        )
    except (OSError, RuntimeError) as error:
        raise BackboneError(
            f"the weights {weights} cannot be downloaded ({error}). Use `--backbone seedling`, "
            "which needs no download, or `--weights FILE` with a file fetched elsewhere from "
            f"{weights.url}"
        ) from error


def hash_state_dict(tensors: dict[str, Tensor]) -> str:
    """Digest of a state dict (see `featurize.fingerprint.hash_weight_arrays`)."""
    arrays = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        # numpy has no bfloat16, and floats count as float32 in any case.
        arrays[name] = (plain.float() if plain.is_floating_point() else plain).numpy()
    return hash_weight_arrays(arrays)


def load_into(
    module: nn.Module, tensors: dict[str, Tensor], tensor_names: set[str], source: str
) -> None:
    """Copy weights into a (cut) network; every one it has must be there and fit.

    Tensors the network has no place for are no obstacle: they lie above the cut.

    Parameters
    ----------
    module : nn.Module
    tensors : dict of str to Tensor
    tensor_names : set of str
        Names of the uncut network's tensors. What else the cut one has are constants of its code.
    source : str
        What the tensors are called in an error.

    Raises
    ------
    BackboneError
        Naming the first keys and shapes that differ.
    """
    wanted = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name in tensor_names and not name.endswith("num_batches_tracked")
    }
    wrong = []
    for name, tensor in wanted.items():
        if name not in tensors:
            wrong.append(f"{name} is missing")
        elif tensors[name].shape != tensor.shape:
            found, want = tuple(tensors[name].shape), tuple(tensor.shape)
            wrong.append(f"{name} is {found} but the network has {want}")
        elif tensors[name].is_complex() and not tensor.is_complex():
            wrong.append(f"{name} is complex but the network has real numbers")
    if wrong:
        unused = sorted(set(tensors) - tensor_names)
        also = f"; the file has {', '.join(unused[:3])} ..." if unused else ""
        raise BackboneError(
            f"{source} do not fit this network in {len(wrong)} of {len(wanted)} tensors: "
            f"{'; '.join(wrong[:3])}{also}"
        )
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def read_preprocess(metadata: dict[str, str]) -> dict[str, Any] | None:
    """The preprocessing written in a weights file's metadata, if any."""
    try:
        found = json.loads(metadata.get("preprocess", "null"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
