"""Cuts of timm's networks against timm itself: the table of docs/backbones.md.

Weights are random and harsh: norms, biases, layer scales and running statistics are perturbed, so
that a wrong axis or a skipped branch shows. timm's own `forward_intermediates` and `forward_head`
are the oracle. Usage: timm_families.py [--engines] [ARCHITECTURE ...]
"""

import argparse
import time
import warnings
from dataclasses import replace

import torch

from featurize.backbones.backbone import Backbone
from featurize.backbones.names import TimmName
from featurize.backbones.pretrained.loaded import LoadedNetwork
from featurize.backbones.pretrained.timm_config import read_registry
from featurize.backbones.pretrained.timm_models import build_network, load_network
from featurize.backbones.profiling import count_macs
from featurize.layer_spec import PRE_LOGITS

# One or two of each family, with a size of images that keeps the whole table to minutes.
SIZES = {
    "resnet18": 64, "resnetv2_50x1_bit": 64, "regnety_002": 64, "resnest14d": 64,
    "convnext_tiny": 64, "convnextv2_atto": 64, "efficientnet_b0": 64, "tf_efficientnetv2_b0": 64,
    "tf_efficientnet_lite0": 64, "mobilenetv2_100": 64, "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64, "mobilenetv4_hybrid_medium": 64, "efficientvit_b0": 64,
    "efficientvit_m0": 112, "densenet121": 64, "nfnet_l0": 64, "ghostnet_100": 64,
    "repvit_m0_9": 64, "fastvit_t8": 64, "mobileone_s0": 64, "hrnet_w18_small": 64,
    "poolformer_s12": 64, "caformer_s18": 64, "pvt_v2_b0": 64, "mobilevit_s": 64,
    "edgenext_xx_small": 64, "tiny_vit_5m_224": 64, "vit_tiny_patch16_224": 112,
    "vit_small_patch14_reg4_dinov2": 112, "vit_small_patch16_dinov3": 112,
    "deit3_small_patch16_224": 112, "deit_tiny_distilled_patch16_224": 112,
    "beit_base_patch16_224": 112, "eva02_tiny_patch14_224": 112, "vit_base_patch16_clip_224": 112,
    "vit_base_patch16_siglip_224": 112, "vit_pe_core_tiny_patch16_384": 112, "resnet50_clip": 128,
    "vitamin_small_224": 112, "cait_xxs24_224": 112, "xcit_nano_12_p8_224": 112,
    "convit_tiny": 112, "swin_tiny_patch4_window7_224": 112, "swinv2_tiny_window8_256": 128,
    "maxvit_rmlp_pico_rw_256": 128, "coatnet_nano_rw_224": 128, "davit_tiny": 64,
    "hiera_tiny_224": 128, "samvit_base_patch16": 112, "sam2_hiera_tiny": 64, "levit_128s": 112,
    "mvitv2_tiny": 128, "twins_svt_small": 128, "crossvit_tiny_240": 240, "coat_tiny": 128,
    "volo_d1_224": 112, "naflexvit_base_patch16_gap": 64, "mobilenetv5_300m": 64,
}  # fmt: skip


ENGINES = ("eager", "onnxruntime")  # each is held to eager when it is opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=list(SIZES))
    parser.add_argument("--engines", action="store_true", help="also open ONNX Runtime's engine")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    headings = ["network", "px", "layers", "stage ends as timm's", "largest difference"]
    headings += ["arithmetic", "axes", "`pre_logits`", "difference"]
    headings += ["engines" if options.engines else "seconds"]
    print(f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    for architecture in options.architectures:
        size = SIZES.get(architecture, 64)
        try:
            print(describe(architecture, size, options.engines), flush=True)
        except Exception as error:  # one network that fails shall not hide the others
            reason = f"{type(error).__name__}: {str(error)[:150]}"
            print(f"| {architecture} | {size} | {reason} |", flush=True)


def describe(architecture: str, size: int, engines: bool) -> str:
    """One row of the table."""
    started = time.perf_counter()
    oracle, backbone = make_pair(architecture, size)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    features = oracle.forward_features(x)
    embedding = oracle.forward_head(features, pre_logits=True)
    found = compare_stages(oracle, backbone, x)
    compared = [d for d in found.values() if d is not None]
    axes = {
        f"{layer.axes.order}+{layer.axes.n_prefix_tokens}"
        if layer.axes.order == "tokens"
        else layer.axes.order
        for name in found
        if (layer := backbone.layers.get(name)) is not None and layer.axes is not None
    }
    (pre_logits,) = backbone.cut([(PRE_LOGITS, "avg")])(x)
    exact = sum(d < 1e-6 for d in compared)
    cells = [
        architecture,
        str(size),
        str(len(backbone.layers)),
        f"{exact}/{len(found)}",
        f"{max(compared, default=float('nan')):.0e}",
        " ".join(share_of_arithmetic(backbone)),
        ", ".join(sorted(axes)),
        str(pre_logits.shape[1]),
        f"{distance(pre_logits, embedding):.0e}",
        run_engines(backbone, x) if engines else f"{time.perf_counter() - started:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def make_pair(architecture: str, size: int):
    """A network of timm with harsh weights, and our backbone with the same ones."""
    import timm

    torch.manual_seed(0)
    config, _ = read_registry(TimmName(architecture), "")
    preprocess = replace(config.preprocess, resize=size, crop=size)
    config = replace(config, preprocess=preprocess)
    more = {"img_size": size} if config.fixed_size else {}
    oracle = timm.create_model(architecture, num_classes=0, **more).eval()
    perturb(oracle)
    tensors = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    network, loaded, _ = load_network(config, tensors, "random weights")
    return oracle, Backbone.from_loaded(
        LoadedNetwork(
            module=network,
            name=config.name,
            preprocess=preprocess,
            weights="random",
            tensors=loaded,
            build=lambda other: build_network(config, other),
            classifier="",
        )
    )


def perturb(network: torch.nn.Module) -> None:
    """Move all that a fresh network has at 0 or 1."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and (tensor.ndim < 2 or tensor.std() < 1e-3):
            tensor.add_(torch.randn_like(tensor) * 0.1)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)


def compare_stages(oracle, backbone: Backbone, x: torch.Tensor) -> dict[str, float | None]:
    """Distance of each of timm's stage ends from ours, pooled; None where it is no layer here."""
    names = [info["module"] for info in oracle.feature_info]
    maps = oracle.forward_intermediates(x, intermediates_only=True)
    found: dict[str, float | None] = {}
    for name, expected in zip(names, maps, strict=False):
        layer = backbone.layers.get(name)
        if layer is None:
            found[name] = None
            continue
        (ours,) = backbone.cut([(name, "avg")])(x)
        theirs = expected.mean((2, 3)) if expected.ndim == 4 else expected.mean(1)
        found[name] = distance(ours, theirs) if ours.shape == theirs.shape else float("inf")
    return found


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest distance of a row, relative to its length."""
    theirs = theirs.flatten(1)
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def share_of_arithmetic(backbone: Backbone) -> list[str]:
    """Share of the multiplications that each cut of `auto` runs."""
    macs = count_macs(backbone, {*backbone.family.stages, PRE_LOGITS})
    return [f"{macs[stage] / macs[PRE_LOGITS]:.2f}" for stage in backbone.family.stages if macs]


def run_engines(backbone: Backbone, x: torch.Tensor) -> str:
    """Which engines run the network, or why they do not."""
    from featurize.engines.factory import open_engine
    from featurize.layer_spec import LayerSpec

    layers = [LayerSpec(stage) for stage in backbone.family.stages]
    verdicts = []
    for name in ENGINES:
        try:
            open_engine(backbone, layers, name=name, device="cpu", precision="float32")
            verdicts.append(name)
        except Exception as error:
            verdicts.append(f"not {name} ({type(error).__name__})")
    return ", ".join(verdicts)


if __name__ == "__main__":
    main()
