"""Engines run networks of timm to the numbers of eager, or say why they do not."""

import numpy as np
import pytest
import torch
from PIL import Image

from featurize import Backbone, FeatureCache, run
from featurize.errors import FeaturizeError


@pytest.fixture
def compare(tmp_path):
    """Run a network of timm with eager and with another engine; how far the rows are apart."""
    timm = pytest.importorskip("timm", reason="timm is not installed")

    def compare(name: str, size: int, engine: str, **options) -> float:
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0, **options)
        preprocess = {"resize": size, "crop": size, "mean": [0.5] * 3, "std": [0.25] * 3}
        folder = tmp_path / "photos"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for k in range(3):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
        rows = []
        for chosen in ("eager", engine):
            backbone = Backbone(network, name="mine", preprocess=preprocess)
            stage = backbone.family.stages[1]
            out = tmp_path / f"{chosen}.h5"
            run(folder, out, backbone=backbone, engine=chosen, layers=f"{stage},pre_logits")
            cache = FeatureCache(out)
            rows.append(np.concatenate([cache.features(layer) for layer in cache.layers], axis=1))
        off = np.linalg.norm(rows[1] - rows[0], axis=1) / np.linalg.norm(rows[0], axis=1)
        return float(off.max())

    return compare


@pytest.mark.parametrize(
    "name", [pytest.param("test_vit2", marks=pytest.mark.slow), "test_convnext"]
)
def test_onnxruntime_runs_small_networks(name, compare):
    pytest.importorskip("onnxruntime", reason="headgraft[onnx] is not installed")
    assert compare(name, 160, "onnxruntime") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vit_tiny_patch16_224", 112, {"img_size": 112}),
        ("convnext_atto", 64, {}),
        ("eva02_tiny_patch14_224", 112, {"img_size": 112}),
        ("xcit_nano_12_p8_224", 112, {}),
        ("swin_tiny_patch4_window7_224", 224, {}),
    ],
)
def test_onnxruntime_runs_each_family(name, size, options, compare):
    pytest.importorskip("onnxruntime", reason="headgraft[onnx] is not installed")
    assert compare(name, size, "onnxruntime", **options) < 1e-5


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_with_a_reason(compare):
    pytest.importorskip("onnxruntime", reason="headgraft[onnx] is not installed")
    try:
        off = compare("hiera_tiny_224", 224, "onnxruntime")
    except FeaturizeError as error:
        assert "onnx" in str(error)  # noqa: PT017
    else:
        assert off < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("swin_tiny_patch4_window7_224", 224, {}),  # its mask has five axes
        ("vit_tiny_patch16_224", 112, {"img_size": 112}),
    ],
)
def test_compile_runs_transformers(name, size, options, compare):
    assert compare(name, size, "compile", **options) < 1e-5
