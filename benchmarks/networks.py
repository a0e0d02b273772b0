"""Weights files for timing, random ones being as fast as trained ones; and a real MobileNetV2."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from photos import BUILD

if TYPE_CHECKING:
    from featurize import Backbone

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


MOBILENET_STAGES = "features.3,features.6,features.13,features.17,features.18"


def mobilenet(folder: Path) -> "Backbone":
    """MobileNetV2 from a folder in timm's layout, as torchvision builds it.

    The layers are the same in the same order; checked against timm to 1e-6. Only the padding
    before a stride of two differs: these weights were trained with none on the left and above.
    """
    from safetensors.torch import load_file
    from torch import nn
    from torchvision.models import mobilenet_v2

    from featurize import Backbone

    given = load_file(folder / "model.safetensors")
    network = mobilenet_v2(weights=None, num_classes=len(given["classifier.bias"]))
    ours = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    theirs = [name for name in _timm_names() if name in given]
    tensors = {mine: given[name].float() for mine, name in zip(ours, theirs, strict=True)}
    network.load_state_dict(tensors, strict=False)  # without the counts of batches
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        if isinstance(block[0], nn.Conv2d) and block[0].stride == (2, 2):
            block[0].padding = (0, 0)
            block[0] = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), block[0])
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    recipe = {"resize": 256, "crop": 224, "interpolation": config["interpolation"]}
    recipe |= {"mean": config["mean"], "std": config["std"]}
    return Backbone(network, name="mobilenetv2_100", preprocess=recipe)


def _timm_names() -> list[str]:
    """The tensors of timm's mobilenetv2_100 by depth, and some that it lacks."""
    modules = ["conv_stem", "bn1"]
    for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)):
        parts = "conv_pw bn1 conv_dw bn2 conv_pwl bn3" if stage else "conv_dw bn1 conv_pw bn2"
        modules += [f"blocks.{stage}.{k}.{part}" for k in range(depth) for part in parts.split()]
    modules += ["conv_head", "bn2", "classifier"]
    values = ("weight", "bias", "running_mean", "running_var")
    return [f"{module}.{value}" for module in modules for value in values]
