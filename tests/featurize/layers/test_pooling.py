"""Maps to vectors: the same numbers on every device, by the operations that suit it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from featurize.layers.pooling import CHANNELS_FIRST, pool_maps


class Operations(TorchDispatchMode):
    """Names of the operations that were carried out."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_a_gpu_takes_the_maximum_by_a_reduction(pool):
    """A pooling window as large as the map would keep most of a GPU idle."""
    with FakeTensorMode(), Operations() as on_gpu:
        pooled = pool_maps(torch.empty(2, 3, 7, 5, device="cuda"), CHANNELS_FIRST, 0, pool)
    assert pooled.device.type == "cuda"
    assert "aten::amax" in on_gpu.names
    assert not [name for name in on_gpu.names if "max_pool" in name]
    maps = torch.rand(2, 3, 7, 5)
    with Operations() as on_processor:
        pooled = pool_maps(maps, CHANNELS_FIRST, 0, pool)
    assert [name for name in on_processor.names if "max_pool" in name]
    assert torch.equal(pooled[:, -3:], maps.amax((2, 3)))
