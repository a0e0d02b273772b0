"""From images to a head of class names: featurize, zeroshot, predict, finetune, with a whole CLIP.

The network is open_clip's ViT-B-32 with random weights, in the file that open_clip itself writes.
"""

import csv

import numpy as np
import pytest
from PIL import Image

from featurize import load_backbone
from featurize.images.decoding import decode_image

pytestmark = pytest.mark.slow
open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
pytest.importorskip("timm", reason="timm is not installed")
import torch  # noqa: E402 - comes with open_clip
from safetensors.torch import save_file  # noqa: E402

CLASSES = ["ant", "bee", "crow", "deer", "eel"]
BACKBONE = "timm:vit_base_patch32_clip_quickgelu_224"
TEXT_MODEL = "ViT-B-32-quickgelu"
N = 100


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    network = open_clip.create_model(TEXT_MODEL).eval()
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            # As it begins, all images lie in one place, and so do all texts.
            if tensor.dim() > 1 and "positional" not in name:
                tensor.mul_(2)
    return network


@pytest.fixture(scope="module")
def world(clip, tmp_path_factory):
    """A folder of images, a checkpoint with both towers, and one whose image tower is another."""
    home, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    for k in range(N):
        path = home / "images" / CLASSES[k % len(CLASSES)] / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((240, 230), Image.Resampling.NEAREST).save(path)
    tensors = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
    save_file(tensors, home / "clip.safetensors")
    other = {**tensors, "visual.conv1.weight": tensors["visual.conv1.weight"] + 1e-3}
    save_file(other, home / "other.safetensors")
    return home


@pytest.fixture(scope="module")
def cache(world, command):
    weights = ("--backbone", BACKBONE, "--weights", world / "clip.safetensors")
    done = command("featurize", "run", world / "images", "-o", world / "c.h5", *weights)
    assert done.returncode == 0, done.stderr
    return world / "c.h5"


@pytest.fixture(scope="module")
def head(world, cache, command):
    options = ("--classes", ",".join(CLASSES), "--text-model", TEXT_MODEL)
    line = ("classify", "zeroshot", cache, *options, "-o", world / "zero.head", "--text")
    done = command(*line, world / "clip.safetensors")
    assert done.returncode == 0, done.stderr
    refused = command(*line, world / "other.safetensors")
    assert refused.returncode == 2
    assert "digest" in refused.stderr
    return world / "zero.head"


def clip_says(clip, world) -> dict[str, str]:
    """The class of each image by open_clip's own towers, from the same pixels."""
    from classify.training.zero_shot import PROMPTS

    backbone = load_backbone(BACKBONE, str(world / "clip.safetensors"))
    preprocess, said = backbone.preprocess, {}
    tokenizer = open_clip.get_tokenizer(TEXT_MODEL)
    mean, std = (np.array(values) for values in (preprocess.mean, preprocess.std))
    with torch.inference_mode():
        texts = open_clip.build_zero_shot_classifier(clip, tokenizer, CLASSES, PROMPTS)
        for path in sorted((world / "images").rglob("*.png")):
            pixels = decode_image(path.read_bytes(), preprocess) / 255
            x = torch.from_numpy((pixels - mean) / std).float().permute(2, 0, 1)[None]
            logits = clip.encode_image(x, normalize=True) @ texts
            said[path.relative_to(world / "images").as_posix()] = CLASSES[int(logits.argmax())]
    return said


def test_it_says_what_clip_says(clip, world, head, command):
    done = command("classify", "predict", head, world / "c.h5", "-o", world / "said.csv")
    assert done.returncode == 0, done.stderr
    with open(world / "said.csv", newline="") as file:
        found = {row["path"]: row["label"] for row in csv.DictReader(file)}
    expected = clip_says(clip, world)
    assert len(set(expected.values())) > 1  # not one answer for all
    assert found == expected


def test_it_starts_a_fine_tuning(world, cache, head, command):
    options = ("--backbone", BACKBONE, "--weights", world / "clip.safetensors", "--tune", "last-1")
    more = ("--init-head", head, "--epochs", 1, "--cache", cache, "-o", world / "tuned.safetensors")
    done = command("classify", "finetune", world / "images", *options, *more)
    assert done.returncode == 0, done.stderr
