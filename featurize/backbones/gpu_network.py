"""A cut network made ready for a GPU: a copy, with fewer operations and smaller weights."""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featurize.backbones.pixel_network import PixelNetwork
from featurize.images.preprocess import Preprocess


def to_gpu_network(
    network: nn.Module,
    preprocess: Preprocess,
    device: str,
    dtype: torch.dtype | None = None,
) -> PixelNetwork:
    """Copy a cut network to a GPU, and leave the network itself as it is.

    Batch norms are folded into the convolutions before them, and the weights of convolutions have
    their channels last.

    Parameters
    ----------
    network : nn.Module
        Maps a normalised float batch (B, 3, crop, crop) to a tuple of features.
    preprocess : Preprocess
        Its ``mean`` and ``std`` are used.
    device : str
        Such as ``cuda`` or ``cuda:1``.
    dtype : torch.dtype, optional
        What `torch.autocast` will compute in. Weights that it would convert for each batch are
        stored so.

    Returns
    -------
    PixelNetwork
        The copy.
    """
    copied = PixelNetwork(network, preprocess, channels_last=True)
    if isinstance(copied.network, fx.GraphModule):
        fold_batch_norms(copied.network)
    if dtype is not None:
        _store_weights(copied, dtype)
    return copied.to(device)


def fold_batch_norms(network: fx.GraphModule) -> None:
    """Fold the batch norms of a network into the convolutions before them, in place.

    A convolution whose output or weights are used elsewhere too stays as it is.

    Parameters
    ----------
    network : GraphModule
        In evaluation mode.
    """
    modules = dict(network.named_modules())
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    n_calls = Counter(str(node.target) for node in calls)
    read_owners = {
        str(node.target).rpartition(".")[0] for node in network.graph.nodes if node.op == "get_attr"
    }
    for node in calls:
        norm, before = modules[str(node.target)], node.args[0] if node.args else None
        # Not a subclass, which may compute more than the norm.
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv_name = str(before.target)
        conv = modules[conv_name]
        is_shared = len(before.users) > 1 or n_calls[conv_name] > 1 or conv_name in read_owners
        if is_shared or not isinstance(conv, nn.Conv2d):
            continue
        network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()


def _store_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of convolutions and linear layers, as autocast does for each batch."""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.to(dtype)
