"""What is looked at before an engine is used: every precision, and graphs while they replay."""

import numpy as np
import pytest
import torch

from featurize import Backbone, load_backbone
from featurize.engines import factory, torch_settings
from featurize.engines.base import ENGINE_RTOL
from featurize.engines.eager import EagerEngine
from featurize.engines.factory import open_engine
from featurize.errors import CallError, EngineError

LAYERS = [("stage2", "avg")]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("seedling")


class Stand:
    """Eager on the processor, in an engine's place; `spoil` may change what a call gives."""

    def __init__(self, module, preprocess, device, precision, spoil):
        self._eager = EagerEngine(module, preprocess, device="cpu", precision=precision)
        self.name, self.device, self.batch_size, self.max_batch_size = "stand", "cpu", 8, 8
        self.sizes: list[int] = []
        self._spoil = spoil

    def run(self, pixels):
        self.sizes.append(len(pixels))
        return self._spoil(len(self.sizes), len(pixels), self._eager.run(pixels))


def open_stand(backbone, monkeypatch, spoil, name="cuda", precision="float32"):
    """Open an engine as for a GPU, with a stand-in on the processor."""
    made = []

    def make(name, module, preprocess, device, precision):
        made.append(Stand(module, preprocess, device, precision, spoil))
        return made[-1]

    monkeypatch.setattr(factory, "_make_engine", make)
    monkeypatch.setattr(factory, "resolve_engine_device", lambda *options: "cpu")
    open_engine(backbone, LAYERS, name=name, precision=precision)
    return made[-1]


def scale(factor):
    return lambda call, size, features: [layer * factor for layer in features]


def test_a_graph_is_recorded_and_replayed_before_it_is_trusted(backbone, monkeypatch):
    stand = open_stand(backbone, monkeypatch, lambda call, size, features: features)
    assert len(stand.sizes) >= 4
    assert len(set(stand.sizes)) == 2


@pytest.mark.parametrize("call", [2, 3])
def test_a_replay_that_gives_other_features_is_noticed(backbone, monkeypatch, call):
    def spoil(number, size, features):
        return [layer * (1.001 if number == call else 1) for layer in features]

    with pytest.raises(EngineError, match=r"gives other features .* use --engine eager"):
        open_stand(backbone, monkeypatch, spoil)


def test_a_replay_of_the_batch_before_is_noticed(backbone, monkeypatch):
    kept = []

    def spoil(number, size, features):
        kept.append(features)
        return kept[-2] if number == 3 else features

    with pytest.raises(EngineError, match="gives other features"):
        open_stand(backbone, monkeypatch, spoil)


def test_a_smaller_batch_that_gives_other_features_is_noticed(backbone, monkeypatch):
    def spoil(number, size, features):
        return [layer[::-1] for layer in features] if size < 8 else features

    with pytest.raises(EngineError, match="gives other features"):
        open_stand(backbone, monkeypatch, spoil)


def test_an_engine_that_fails_while_it_records_cannot_run(backbone, monkeypatch):
    def spoil(number, size, features):
        if number == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return features

    with pytest.raises(EngineError, match=r"cannot run this network here .operation not permitted"):
        open_stand(backbone, monkeypatch, spoil)


@pytest.mark.parametrize(
    ("precision", "within", "beyond"),
    [("float32", 1 + ENGINE_RTOL / 2, 1 + 3 * ENGINE_RTOL), ("bf16", 1.01, 1.1)],
)
@pytest.mark.parametrize("name", ["cuda", "compile"])
def test_every_precision_is_checked(backbone, monkeypatch, name, precision, within, beyond):
    open_stand(backbone, monkeypatch, scale(within), name, precision)
    with pytest.raises(EngineError, match="gives other features"):
        open_stand(backbone, monkeypatch, scale(beyond), name, precision)


def test_features_that_are_not_numbers_are_noticed(backbone, monkeypatch):
    with pytest.raises(EngineError, match="by nan"):
        open_stand(backbone, monkeypatch, scale(np.nan))


def test_an_engine_on_another_device_leaves_the_backbone_where_it_is():
    """`meta` is a device that every machine has."""
    backbone = load_backbone("seedling")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    first = open_engine(backbone, LAYERS, name="eager", device="cpu")
    before = first.run(pixels)
    module = backbone.cut(LAYERS)
    elsewhere = EagerEngine(module, backbone.preprocess, device="meta", precision="float32")
    assert {tensor.device.type for tensor in elsewhere.module.parameters()} == {"meta"}
    tensors = [*backbone.network.module.parameters(), *module.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    again = open_engine(backbone, LAYERS, name="eager", device="cpu")
    for engine in (first, again):
        assert np.array_equal(engine.run(pixels)[0], before[0])


def test_tf32_is_refused_where_the_gpu_has_none(monkeypatch):
    """Otherwise torch computes in float32, and the cache's record says TF32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    with pytest.raises(CallError, match="has no TF32; use float32 or fp16"):
        factory.resolve_engine_device("eager", "cuda", "tf32")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    assert factory.resolve_engine_device("eager", "cuda", "tf32") == "cuda"


@pytest.mark.parametrize("missing", ["compiler", "headers"])
def test_what_starts_kernels_is_looked_for_before_a_minute_of_compiling(
    monkeypatch, missing, tmp_path
):
    if missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        expected = "it needs a C compiler"
    else:
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
        expected = "it needs Python's header files"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CallError, match=expected):
        factory.resolve_engine_device("cuda", "auto", "float32")


def test_gpus_of_other_makers_are_named(monkeypatch):
    assert factory.describe_untested_gpu("cuda") == ""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "not tested" in factory.describe_untested_gpu("cuda")
    assert factory.describe_untested_gpu("cpu") == ""
    for device in ("mps", "xpu:0"):
        with pytest.raises(CallError, match=f"{device}' is not supported: .* use --device cpu"):
            torch_settings.resolve_device(device)
