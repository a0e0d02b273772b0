"""Folders of strangers: nothing in them is run, and what cannot be a network is refused soon."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from featurize import FeatureCache, load_backbone
from featurize.errors import BackboneError

MARKER = "marker"
SECONDS, MEGABYTES = 5.0, 1024

# Imports what a run imports, then forks a process for each folder and runs the command in it. A
# child that takes longer than it may is ended by its own limit of processor time or by an alarm.
RUNNER = """
import json, os, resource, signal, sys, tempfile, time
import torch, timm, torchvision, safetensors
import featurize.backbones.load, featurize.backbones.pretrained.timm_sources
import featurize.extraction.run, featurize.engines.eager
from featurize.__main__ import main
torch.set_num_threads(1)
results = {}
pictures, *folders = sys.argv[1:]
for folder in folders:
    said = tempfile.TemporaryFile()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        os.chdir(folder)
        out = f"{folder}/../{os.path.basename(folder)}.h5"
        sys.argv = ["featurize", "run", pictures, "-o", out, "--backbone", folder]
        try:
            code = main()
        except SystemExit as ending:
            code = ending.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
    _, status, usage = os.wait4(pid, 0)
    said.seek(0)
    results[folder] = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "megabytes": usage.ru_maxrss / 1024,
        "said": said.read().decode(errors="replace"),
    }
print(json.dumps(results))
"""


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


Config = dict[str, Any]


def argue(**arguments: Any) -> Callable[[Config], None]:
    return lambda config: config["model_args"].update(arguments)


def publish(**values: Any) -> Callable[[Config], None]:
    return lambda config: config["pretrained_cfg"].update(values)


def add(**values: Any) -> Callable[[Config], None]:
    return lambda config: config.update(values)


# By name: what is done to a sound configuration, and a word of the message.
CHANGES: dict[str, tuple[Callable[[Config], None], str]] = {
    "act_layer runs a command": (argue(act_layer="os.system"), "act_layer"),
    "act_layer is a lambda": (argue(act_layer="lambda: 1"), "act_layer"),
    "act_layer is a table": (argue(act_layer={"a": 1}), "act_layer"),
    "norm_layer is a path": (argue(norm_layer="torch.nn.LayerNorm"), "norm_layer"),
    "block_fn": (argue(block_fn="builtins.eval"), "block_fn"),
    "mlp_layer": (argue(mlp_layer="__builtins__"), "mlp_layer"),
    "weight_init": (argue(weight_init="reset"), "weight_init"),
    "depth": (argue(depth=100_000), "depth"),
    "depth within reason, of another file": (argue(depth=200), "depth"),
    "width": (argue(embed_dim=1 << 40), "embed_dim"),
    "wide, of another file": (argue(embed_dim=16_384), ""),
    "no width": (argue(embed_dim=0), ""),
    "negative width": (argue(embed_dim=-64), "embed_dim"),
    "width in words": (argue(embed_dim="64"), "embed_dim"),
    "no patches": (argue(patch_size=0), ""),
    "no heads": (argue(num_heads=0), ""),
    "ratio": (argue(mlp_ratio=float("inf")), "mlp_ratio"),
    "not a ratio": (argue(mlp_ratio=float("nan")), "mlp_ratio"),
    "registers": (argue(reg_tokens=10**9), "reg_tokens"),
    "pretrained": (argue(pretrained="http://127.0.0.1:9/x"), ""),
    "pretrained_cfg in arguments": (
        argue(pretrained_cfg={"file": "/etc/passwd"}),
        "pretrained_cfg",
    ),
    "checkpoint_path": (argue(checkpoint_path="/etc/passwd"), "checkpoint_path"),
    "arguments are a list": (add(model_args=[1]), "model_args"),
    "published is a list": (add(pretrained_cfg=[1]), "pretrained_cfg"),
    "architecture is a path": (add(architecture="../x"), "../x"),
    "architecture is a module": (add(architecture="os.system"), "os.system"),
    "architecture is of the hub": (add(architecture="hf-hub:me/vit"), "hf-hub"),
    "architecture is a list": (add(architecture=["test_vit"]), "architecture"),
    "architecture is empty": (add(architecture=""), "timm"),
    "architecture is long": (add(architecture="a" * 500_000), "timm"),
    "crop_pct is tiny": (publish(crop_pct=1e-9), "crop_pct"),
    "crop_pct is negative": (publish(crop_pct=-1), "crop_pct"),
    "crop_pct is no number": (publish(crop_pct=float("nan")), "crop_pct"),
    "crop_pct is text": (publish(crop_pct="0.9"), "crop_pct"),
    "large images": (publish(input_size=[3, 10**9, 10**9]), "size"),
    "larger images than patches": (publish(input_size=[3, 16_000, 16_000]), ""),
    "images without size": (publish(input_size=[3, float("nan"), float("nan")]), "size"),
    "images of no pixel": (publish(input_size=[3, 0, 0]), "size"),
    "images in words": (publish(input_size="3x160x160"), "size"),
    "oblong images": (publish(input_size=[3, 160, 80]), "square"),
    "one channel": (publish(input_size=[1, 160, 160]), "channels"),
    "short mean": (publish(mean=[0.5]), "mean"),
    "long mean": (publish(mean=[0.5] * 4), "mean"),
    "mean is text": (publish(mean="half"), "mean"),
    "mean is no number": (publish(mean=[float("nan")] * 3), "mean"),
    "no deviation": (publish(std=[0.0] * 3), "std"),
    "infinite deviation": (publish(std=[float("inf")] * 3), "std"),
    "interpolation": (publish(interpolation="eval"), "interpolation"),
    "interpolation is a list": (publish(interpolation=["bicubic"]), "interpolation"),
    "crop mode": (publish(crop_mode="random"), "crop mode"),
    "crop mode is a list": (publish(crop_mode=["center"]), "crop"),
}


def write_others(folder: Path, config: Config, marker: Path) -> dict[str, str]:
    """Write the folders whose files are hostile; return a word of each message."""
    plain = json.dumps(config)
    state = load_file(folder / "sound" / "model.safetensors")
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    texts: dict[str, tuple[str, str]] = {
        "auto_map": (
            json.dumps({"auto_map": {"AutoModel": "modeling.Net"}, "model_type": "net"}),
            "architecture",
        ),
        "auto_map beside": (json.dumps(config | {"auto_map": {"AutoModel": "modeling.Net"}}), ""),
        "huge": (json.dumps(config | {"x": "y" * (50 << 20)}), "bytes"),
        "nested": ("[" * 200_000 + "]" * 200_000, "config.json"),
        "nested table": ('{"a":' * 100_000 + "1" + "}" * 100_000, "config.json"),
        "long number": (plain[:-1] + ', "x": ' + "9" * 100_000 + "}", "config.json"),
        "no json": ("import os", "config.json"),
        "empty": ("", "config.json"),
        "a list": ("[1]", "architecture"),
        "null": ("null", "architecture"),
        "no text": ("\udcff\udcfe", "config.json"),
        "pickled": (plain, "weights"),
        "pickled by torch": (plain, "weights"),
        "pickled beside weights": (plain, ""),
        "no weights": (plain, "model.safetensors"),
    }
    words = {}
    for name, (text, word) in texts.items():
        path = folder / name
        path.mkdir()
        (path / "config.json").write_text(text, errors="surrogateescape")
        # Python beside it, under names that something might import or run.
        for module in ("modeling", "hubconf", "timm", "sitecustomize", "__init__", "conftest"):
            (path / f"{module}.py").write_text(code)
        if name == "pickled":
            (path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload(marker)}))
        elif name == "pickled by torch":
            torch.save(state | {"x": Payload(marker)}, path / "pytorch_model.bin")
        elif name == "pickled beside weights":
            torch.save(state | {"x": Payload(marker)}, path / "pytorch_model.bin")
            (path / "model.safetensors").symlink_to(folder / "sound" / "model.safetensors")
        elif name != "no weights":
            (path / "model.safetensors").symlink_to(folder / "sound" / "model.safetensors")
        words[name] = word
    return words


OTHERS = (
    *("auto_map", "auto_map beside", "huge", "nested", "nested table", "long number", "no json"),
    *("empty", "a list", "null", "no text", "pickled", "pickled by torch"),
    *("pickled beside weights", "no weights"),
)
# Those that are not wrong: what they ask for is not done, or has no effect.
HARMLESS = {"pretrained", "auto_map beside", "pickled beside weights"}
QUICK = (
    *("act_layer runs a command", "depth", "architecture is a path", "crop_pct is tiny"),
    *("large images", "images without size", "short mean", "auto_map", "huge", "nested table"),
    *("pickled", "pickled by torch", "pickled beside weights"),
)
REST = sorted({*CHANGES, *OTHERS} - set(QUICK))


def run_all(chosen, make_harsh, write_folder, pictures, folder):
    """How the command ended for each folder, by its name; and a word of each message."""
    write_folder(folder / "sound", make_harsh("test_vit", num_classes=3))
    config = json.loads((folder / "sound" / "config.json").read_text())
    marker = folder / MARKER
    words = write_others(folder, config, marker)
    for name, (change, word) in CHANGES.items():
        changed = json.loads(json.dumps(config))
        change(changed)
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(changed))
        (folder / name / "model.safetensors").symlink_to(folder / "sound" / "model.safetensors")
        words[name] = word
    assert set(words) == {*CHANGES, *OTHERS}
    names = ["sound", *chosen]
    line = [sys.executable, "-c", RUNNER, str(pictures), *(str(folder / name) for name in names)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[str(folder / name)] | {"folder": folder} for name in names}, words


@pytest.fixture(scope="module")
def ended(timm, make_harsh, write_folder, pictures, tmp_path_factory):
    """How the command ended for the quick ones."""
    return run_all(QUICK, make_harsh, write_folder, pictures, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def rest_ended(timm, make_harsh, write_folder, pictures, tmp_path_factory):
    """How the command ended for all the others."""
    return run_all(REST, make_harsh, write_folder, pictures, tmp_path_factory.mktemp("rest"))


def check_end(name: str, found: dict[str, Any], word: str) -> None:
    if name in HARMLESS:
        assert found["code"] in (0, 2), found["said"][-2000:]
    else:
        assert found["code"] == 2, found["said"][-2000:]
        errors = [line for line in found["said"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, found["said"][-2000:]
        assert word in errors[0], errors[0][:500]
        assert not (found["folder"] / f"{name}.h5").exists()
    assert len(found["said"]) < 3000
    assert found["seconds"] < SECONDS, found["said"][-500:]
    assert found["megabytes"] < MEGABYTES


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_hostile_folders_are_refused_soon(name, ended):
    check_end(name, ended[0][name], ended[1][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_other_hostile_folders_are_refused_soon(name, rest_ended):
    check_end(name, rest_ended[0][name], rest_ended[1][name])
    assert not (rest_ended[0]["sound"]["folder"] / MARKER).exists()


def test_the_sound_folder_works(ended):
    """What is refused is refused for what was changed."""
    found = ended[0]["sound"]
    assert found["code"] == 0, found["said"]
    cache = FeatureCache(found["folder"] / "sound.h5")
    assert cache.features("pre_logits").shape == (3, 64)


def test_nothing_was_run(ended):
    marker = ended[0]["sound"]["folder"] / MARKER
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301  # the payload works
    assert marker.exists()


# --- what may stand in a configuration ------------------------------------------------------


@pytest.mark.long
def test_texts_of_strangers_do_not_reach_the_terminal(
    make_harsh, write_folder, pictures, tmp_path, cli
):
    hostile = "\x1b]0;title\x07\x1b[2Jlicence"
    folder = write_folder(
        tmp_path / "folder", make_harsh("test_vit"), license=hostile, tag=f"tag{hostile}"
    )
    done = cli("run", pictures, "-o", tmp_path / "c.h5", "--backbone", folder)
    assert done.exit_code == 0, done.stderr
    shown = cli("info", tmp_path / "c.h5")
    for text in (done.stderr, done.stdout, shown.stdout):
        assert "\x1b" not in text
        assert "\x07" not in text


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"mlp_layer": "SwiGLUPacked", "mlp_ratio": 4.0, "act_layer": "silu"}),
        ("test_vit", {"reg_tokens": 4, "init_values": 1e-5, "no_embed_class": True}),
        ("test_vit", {"global_pool": "avg"}),
        ("test_vit", {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_networks_like_those_of_the_hub(name, arguments, timm, make_harsh, write_folder, tmp_path):
    """UNI 2, Virchow, GigaPath: a vision transformer with arguments of its own."""
    classes = {"SwiGLUPacked": timm.layers.SwiGLUPacked, "silu": torch.nn.SiLU}
    built = {
        key: classes.get(value, value) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    oracle = make_harsh(name, num_classes=0, **built)
    backbone = load_backbone(
        str(write_folder(tmp_path / "folder", oracle, arguments={**arguments, "img_size": 160}))
    )
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = oracle.forward_head(oracle.forward_features(x), pre_logits=True)
        (found,) = backbone.cut([("pre_logits", "avg")])(x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert backbone.name != "timm:test_vit"


def test_the_older_layout_of_a_configuration(make_harsh, write_folder, tmp_path):
    """Everything of `pretrained_cfg` at the top."""
    folder = write_folder(tmp_path / "folder", make_harsh("test_vit"))
    config = json.loads((folder / "config.json").read_text())
    config |= config.pop("pretrained_cfg")
    (folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(str(folder))
    assert backbone.preprocess.mean == (0.4, 0.5, 0.6)
    assert backbone.preprocess.crop == 160


def test_a_configuration_of_transformers_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 4}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="transformers"):
        load_backbone(str(tmp_path))


# --- sizes ----------------------------------------------------------------------------------


@pytest.fixture
def patch_14(make_harsh, write_folder, tmp_path) -> Path:
    """A small transformer with patches of 14 pixels, for images of 126."""
    arguments = {"patch_size": 14, "reg_tokens": 4}
    network = make_harsh("test_vit", num_classes=0, img_size=126, **arguments)
    return Path(write_folder(tmp_path / "p14", network, arguments=arguments, size=126))


@pytest.mark.long
def test_another_size_of_whole_patches(patch_14, pictures, tmp_path, cli):
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", patch_14)
    done = cli(*line, "--size", 112)
    assert done.exit_code == 0, done.stderr
    assert "112" in done.stderr
    cache = FeatureCache(tmp_path / "c.h5")
    assert cache.extractor.preprocess.crop == 112
    assert json.loads(cli("info", tmp_path / "c.h5", "--json").stdout)["preprocess"]["crop"] == 112
    done = cli(*line, "--size", 112, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == 0
    assert cli(*line).exit_code in (0, 2)  # the cache's own size, or another asked for
    assert FeatureCache(tmp_path / "c.h5").extractor.preprocess.crop == 112
    done = cli(*line, "--size", 126)
    assert done.exit_code == 2
    assert "112" in done.stderr


def test_a_size_of_no_whole_patches_names_the_nearest(patch_14, pictures, tmp_path, cli):
    line = ("run", pictures, "-o", tmp_path / "c.h5", "--backbone", patch_14, "--size", 100)
    done = cli(*line)
    assert done.exit_code == 2
    assert "98" in done.stderr
    assert "112" in done.stderr
    assert not (tmp_path / "c.h5").exists()


def test_positions_are_resampled_as_timm_does(patch_14, make_harsh, timm):
    small = timm.create_model(
        "test_vit", num_classes=0, img_size=112, patch_size=14, reg_tokens=4
    ).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(
        load_file(patch_14 / "model.safetensors"), small
    )
    small.load_state_dict(state)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        expected = small.forward_head(small.forward_features(x), pre_logits=True)
        (found,) = load_backbone(str(patch_14), size=112).cut([("pre_logits", "avg")])(x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
