"""Weights files for timing: seeded random ones, which are as fast as trained ones."""

import os
from pathlib import Path

from photos import BUILD

NETWORKS = {"resnet50": "layer4", "resnet18": "layer4", "squeezenet1_1": "features.12"}


def weights_file(network: str) -> Path:
    """SqueezeNet's real weights where HEADGRAFT_REAL has them; else random ones, made once."""
    real = os.environ.get("HEADGRAFT_REAL")
    if real is not None and network == "squeezenet1_1":
        return Path(real) / "squeezenet1_1-imagenet.safetensors"
    file = BUILD / "weights" / f"{network}.safetensors"
    if not file.exists():
        import torch
        from safetensors.torch import save_file
        from torchvision.models import get_model

        file.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_file(get_model(network, weights=None).state_dict(), file)
    return file
