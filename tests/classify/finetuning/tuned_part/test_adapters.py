"""Low-rank adapters: what they train, what is left of them, and where there can be none."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from classify import FineTuneClassifier, evaluate, finetune, load_head, predict
from classify.errors import CallError
from classify.finetuning.network import FineTuneNetwork
from featurize import FeatureCache, load_backbone, run

pytest.importorskip("peft")
OPTIONS = {"tune": "last-2", "lora": 2, "epochs": 2, "batch_size": 16, "device": "cpu"}
LINEAR_LAYERS = [
    f"blocks.{k}.{name}" for k in (4, 5) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
]


def step(net: FineTuneNetwork, x: torch.Tensor, n_steps: int = 3) -> None:
    """Train a little, on anything."""
    net.train()
    optimizer = torch.optim.AdamW(net.param_groups(1e-2, 1, 1, 0))
    for _ in range(n_steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    net.eval()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)


def adapted(net: FineTuneNetwork) -> list[str]:
    names = [name for name in net.trainable_parameters() if not name.startswith("classifier.")]
    return list(dict.fromkeys(name.split(".lora_")[0].removeprefix("trunk.") for name in names))


def test_only_adapters_and_classifier_train(make_timm_backbone, x):
    backbone = make_timm_backbone("test_vit", img_size=64)
    net = FineTuneNetwork(backbone, "blocks.4", 3, "linear", lora=2)
    assert adapted(net) == LINEAR_LAYERS
    assert all(".lora_" in n or n.startswith("classifier.") for n in net.trainable_parameters())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step(net, x)
    changed = {n for n, tensor in net.state_dict().items() if not torch.equal(before[n], tensor)}
    assert changed == set(net.trainable_parameters())
    # Patches are cut by a convolution named `proj` too, and it is left alone.
    assert adapted(FineTuneNetwork(backbone, "all", 3, "linear", lora=2))[:2] == [
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
    ]


def test_they_change_nothing_at_first_and_merging_changes_nothing_either(make_timm_backbone, x):
    backbone = make_timm_backbone("test_vit", img_size=64)
    net = FineTuneNetwork(backbone, "all", 3, "linear").eval()
    names, weights = list(net.state_dict()), backbone.weights_sha256
    with torch.inference_mode():
        plain = net.embed(x)
    net = FineTuneNetwork(backbone, "all", 3, "linear", lora=4).eval()
    with torch.inference_mode():
        assert torch.equal(net.embed(x), plain)
    step(net, x)
    with torch.inference_mode():
        trained = net.embed(x)
        net.merge_adapters()
        merged = net.embed(x)
    assert float((trained - plain).norm() / plain.norm()) > 1e-2
    assert float((merged - trained).norm() / trained.norm()) < 1e-5
    assert list(net.state_dict()) == names
    assert backbone.weights_sha256 == weights  # what the network was is still known


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "tiny_vit_5m_224",
            {"depths": (1, 1, 1, 1)},
        ),  # layers inside whole modules
        ("beit_base_patch16_224", {"depth": 2, "embed_dim": 96, "num_heads": 2, "img_size": 64}),
        ("test_convnext", {}),
    ],
)
def test_merging_is_exact_in_other_networks(name, options, make_timm_backbone, x):
    backbone = make_timm_backbone(name, **options)
    names = list(backbone.network.module.state_dict())
    net = FineTuneNetwork(backbone, "all", 3, "linear", lora=2)
    assert adapted(net)
    # BEiT's is never called: its weights are taken out of it. An adapter beside it would be idle.
    assert name != "beit_base_patch16_224" or "blocks.0.attn.qkv" not in adapted(net)
    for parameter in net.trainable_parameters().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    net.eval()
    with torch.inference_mode():
        trained = net.embed(x)
        net.merge_adapters()
        merged = net.embed(x)
    assert float((merged - trained).norm() / trained.norm()) < 1e-5
    assert list(backbone.network.module.state_dict()) == names


# --- the whole way ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(pictured, vit_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "M.safetensors"
    said = []
    result = finetune(pictured.images, path, backbone=vit_folder, say=said.append, **OPTIONS)
    return path, result, said


@pytest.mark.long
def test_the_file_is_an_ordinary_tuned_network(tuned, vit_folder, pictured, tmp_path):
    path, result, said = tuned
    assert (result.lora, result.strategy, result.to_dict()["lora"]) == (2, "finetune", 2)
    assert any("tuning last-2 by adapters of rank 2 on cpu" in text for text in said)
    names = {n for n in load_file(path) if n.startswith("network.")}
    original = load_backbone(vit_folder)
    assert names == {f"network.{n}" for n in original.network.module.state_dict()}
    reopened = load_backbone(str(path))
    assert reopened.name == original.name == "timm:test_vit"
    assert reopened.preprocess == original.preprocess
    head = load_head(path)
    assert reopened.weights_sha256 == head.source.weights_sha256 != original.weights_sha256
    assert len(predict(head, pictured.images).paths) == 60
    run(pictured.images, tmp_path / "t.h5", backbone=str(path), device="cpu")
    assert evaluate(head, FeatureCache(tmp_path / "t.h5"))[0]["accuracy"] == result.accuracy


def test_all_but_the_adapted_weights_is_as_it_was(tuned, vit_folder):
    before = load_file(f"{vit_folder}/model.safetensors")
    changed = {
        name.removeprefix("network.")
        for name, tensor in load_file(tuned[0]).items()
        if name.startswith("network.") and not torch.equal(before[name[8:]], tensor)
    }
    assert changed == {f"{layer}.weight" for layer in LINEAR_LAYERS}


@pytest.mark.long
def test_stopped_it_goes_on_to_the_same_end(pictured, vit_folder, tmp_path, one_epoch_deadline):
    def fit(**options):
        said = []
        model = FineTuneClassifier(vit_folder, root=pictured.images, augment="none", **OPTIONS)
        model.fit(pictured.paths, pictured.labels, say=said.append, **options)
        return model, any("going on after epoch 1" in text for text in said)

    unbroken, _ = fit()
    stopped, _ = fit(checkpoint=tmp_path / "M.part", deadline=one_epoch_deadline())
    assert len(stopped.history_) == 1
    assert (tmp_path / "M.part").stat().st_size < 200_000  # adapters, not weights
    resumed, went_on = fit(checkpoint=tmp_path / "M.part")
    assert went_on
    assert unbroken.network_.keys() == resumed.network_.keys()
    for name, tensor in unbroken.network_.items():
        assert torch.equal(tensor, resumed.network_[name]), name
    assert np.array_equal(unbroken.head_.scorer.coef, resumed.head_.scorer.coef)


# --- where there can be none ----------------------------------------------------------------


def test_what_cannot_have_adapters_is_refused(tuner, pictured):
    for options, message in (
        ({"lora": 4}, "beside linear layers, and what is tuned has none: leave --lora out"),
        ({"lora": 0}, "rank of --lora is 1 or more, not 0"),
        ({"lora": 4, "weights": "none", "tune": "all"}, "adapts pretrained weights, and --weights"),
    ):
        with pytest.raises(CallError, match=message):
            tuner(**options).fit(pictured.paths, pictured.labels)


@pytest.mark.long
def test_without_peft_it_says_what_to_install(pictured, run_cli, vit_folder, tmp_path):
    (tmp_path / "peft.py").write_text("raise ImportError('no peft')")
    line = ("finetune", pictured.images, "-o", tmp_path / "M", "--backbone", vit_folder)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_cli(*line, "--lora", "8", "--device", "cpu", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --lora needs PEFT: pip install 'headgraft[lora]'" in done.stderr


@pytest.mark.slow
def test_peft_is_imported_only_where_it_is_asked_for():
    code = (
        "import sys, classify.finetuning.run, classify.cli.networks\n"
        "assert 'torch' in sys.modules and not {'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
