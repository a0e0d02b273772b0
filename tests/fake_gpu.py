"""A network on a GPU that is not there: shapes in the place of tensors, for `FakeTensorMode`."""

import torch
from torch import nn


def move_to_gpu(network: nn.Module) -> None:
    """Put shapes on the GPU in the place of parameters and buffers, as `Module.to` would.

    To be called within `FakeTensorMode`. Tensors without content need no GPU, and an operation on
    tensors of two devices fails all the same.
    """
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    shape, strides = tensor.shape, tensor.stride()
                    fake = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="cuda")
                    is_parameter = tensors is module._parameters
                    tensors[name] = nn.Parameter(fake, False) if is_parameter else fake
