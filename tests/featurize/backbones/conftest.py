"""Networks of timm in folders, harsh ones: every tensor matters, none is at 0 or 1."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from featurize import Backbone


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The package timm; tests that need it are skipped without it."""
    found: ModuleType = pytest.importorskip("timm", reason="timm is not installed")
    return found


def perturb(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move all that a fresh network has at 0 or 1, so that nothing is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim < 2 or tensor.numel() < 2 or tensor.std() < 1e-3:
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def make_harsh(timm) -> Callable[..., Any]:
    """Build a network of timm with seeded weights: ``make_harsh("test_vit", num_classes=7)``."""

    def make(architecture: str, seed: int = 0, **options: Any) -> Any:
        torch.manual_seed(seed)
        return perturb(timm.create_model(architecture, **options), seed)

    return make


@pytest.fixture(scope="session")
def write_folder(timm) -> Callable[..., Path]:
    """Write a network as a folder in timm's layout: ``config.json`` and ``model.safetensors``.

    ``tensors`` replaces the network's own, ``arguments`` are those of its constructor, and further
    options are entries of its ``pretrained_cfg``.
    """

    def write(
        folder: Path,
        network: Any,
        *,
        tensors: dict[str, Tensor] | None = None,
        arguments: dict[str, Any] | None = None,
        size: int | None = None,
        **published: Any,
    ) -> Path:
        known = network.pretrained_cfg
        side = size or known["input_size"][1]
        config = {
            "architecture": known["architecture"],
            "num_classes": network.num_classes,
            "model_args": arguments or {},
            "pretrained_cfg": {
                "tag": "harsh",
                "input_size": [3, side, side],
                "fixed_input_size": known.get("fixed_input_size", False),
                "interpolation": "bicubic",
                "crop_pct": 0.9,
                "crop_mode": "center",
                "mean": [0.4, 0.5, 0.6],
                "std": [0.2, 0.3, 0.25],
                "num_classes": network.num_classes,
                "license": "apache-2.0",
                **published,
            },
        }
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        state = network.state_dict() if tensors is None else tensors
        save_file(
            {k: t.contiguous().clone() for k, t in state.items()}, folder / "model.safetensors"
        )
        return folder

    return write


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Three pictures, wide, high and square."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 50)), ("b.png", (40, 70)), ("c.png", (48, 48))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest distance of a row, as a share of its norm; infinite if there is a NaN."""
    if found.shape != expected.shape:
        return float("inf")
    off = (found.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    return float(off.nan_to_num(float("inf")).max())


@pytest.fixture(scope="session")
def check_cuts() -> Callable[..., dict[str, float]]:
    """Compare cuts of a backbone with maps of an oracle: ``check_cuts(backbone, maps, x)``.

    The maps have channels first, or are tokens without prefix. It returns the distances.
    """

    def check(backbone: Backbone, maps: dict[str, Tensor], x: Tensor) -> dict[str, float]:
        found = {}
        for name, expected in maps.items():
            average, greatest = backbone.cut([(name, "avg"), (name, "max")])(x)
            flat = expected.flatten(2) if expected.ndim == 4 else expected.transpose(1, 2)
            off = distance(average, flat.mean(2)), distance(greatest, flat.amax(2))
            found[name] = max(off)
        return found

    return check
