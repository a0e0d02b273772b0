"""`--weights FILE` with a network of timm: files as their first publishers wrote them.

The layouts are written out here by hand, from a network of timm whose embedding is known.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featurize import load_backbone
from featurize.errors import BackboneError

SHAPE = {"depth": 2, "embed_dim": 64, "num_heads": 2}
QUERY = "depth=2&embed_dim=64&num_heads=2"
X = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def embed(network, x):
    return network.forward_head(network.forward_features(x), pre_logits=True)


def write_as_openai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The visual tower as OpenAI's CLIP and open_clip name it."""
    words = (
        ("patch_embed.proj", "conv1"),
        ("norm_pre", "ln_pre"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("blocks", "transformer.resblocks"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    found = {}
    for name, tensor in state.items():
        if name == "cls_token":
            found["class_embedding"] = tensor[0, 0]
        elif name == "pos_embed":
            found["positional_embedding"] = tensor[0]
        elif name == "head.weight":
            found["proj"] = tensor.T
        elif name.startswith("norm."):
            found[name.replace("norm.", "ln_post.")] = tensor
        else:
            for theirs, other in words:
                name = name.replace(theirs, other)
            found[name] = tensor
    return found


LAYOUTS = ("timm", "openai", "open_clip around timm")


def write_tower(layout: str, network, file: Path) -> None:
    """Write a visual tower with its projection, beside a text tower."""
    state = network.state_dict()
    if layout == "timm":
        tensors = dict(state)
    elif layout == "openai":
        tensors = {f"visual.{name}": tensor for name, tensor in write_as_openai(state).items()}
    else:
        tensors = {f"visual.trunk.{name}": tensor for name, tensor in state.items()}
        tensors["visual.head.proj.weight"] = tensors.pop("visual.trunk.head.weight")
    if layout != "timm":
        tensors |= {
            "logit_scale": torch.tensor(4.6),
            "text_projection": torch.randn(8, 16),
            "token_embedding.weight": torch.randn(50, 8),
            "positional_embedding": torch.randn(7, 8),
            "transformer.resblocks.0.ln_1.weight": torch.randn(8),
        }
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)


@pytest.fixture
def clip(make_harsh):
    """A small visual tower; its projection has no bias."""
    network = make_harsh("vit_base_patch32_clip_224", num_classes=16, **SHAPE)
    network.head.bias = None
    return network


@pytest.mark.parametrize("layout", LAYOUTS)
def test_visual_towers(layout, clip, tmp_path):
    """The text tower beside it is left alone; the embedding is the one before the projection."""
    write_tower(layout, clip, tmp_path / "w.safetensors")
    name = f"timm:vit_base_patch32_clip_224?{QUERY}"
    backbone = load_backbone(name, str(tmp_path / "w.safetensors"))
    (found,) = backbone.cut([("pre_logits", "avg")])(X)
    assert torch.allclose(found, embed(clip, X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_projection_is_kept(layout, clip, tmp_path):
    write_tower(layout, clip, tmp_path / "w.safetensors")
    name = f"timm:vit_base_patch32_clip_224?{QUERY}"
    projection = load_backbone(name, str(tmp_path / "w.safetensors")).projection
    assert projection is not None
    assert torch.equal(projection, clip.head.weight)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_original_dinov2(suffix, make_harsh, tmp_path):
    """Its class token has a position of its own, and its registers another name."""
    name = "vit_small_patch14_reg4_dinov2"
    network = make_harsh(name, num_classes=0, img_size=224, **SHAPE)
    state = dict(network.state_dict())
    position = torch.randn(1, 1, 64)
    theirs = {name: tensor for name, tensor in state.items() if name != "reg_token"}
    theirs["register_tokens"] = state["reg_token"]
    theirs["mask_token"] = torch.zeros(1, 64)
    theirs["cls_token"] = state["cls_token"] - position
    theirs["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    file = tmp_path / f"dinov2{suffix}"
    if suffix == ".safetensors":
        save_file(theirs, file)
    else:
        torch.save(theirs, file)
    backbone = load_backbone(f"timm:{name}?{QUERY}", str(file), size=224)
    found = backbone.cut([("pre_logits", "avg"), ("norm", "avg"), ("norm", "token")])(X)
    tokens = network.forward_features(X)
    for ours, expected in zip(
        found, (embed(network, X), tokens[:, 5:].mean(1), tokens[:, 0]), strict=True
    ):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_another_network_is_refused(make_harsh, tmp_path):
    save_file(make_harsh("test_resnet").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"w\.safetensors"):
        load_backbone("timm:test_vit", str(tmp_path / "w.safetensors"))


def test_a_file_says_nothing_of_its_licence(make_harsh, pictures, tmp_path, cli):
    """What timm's own weights of that name are published under is not the file's."""
    save_file(make_harsh("test_vit").state_dict(), tmp_path / "w.safetensors")
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", "timm:test_vit")
    done = cli(*line, "--weights", tmp_path / "w.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "unknown" in done.stderr
    assert "apache" not in done.stderr
