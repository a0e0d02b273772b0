"""Weights from files: what is unpacked, what has to match, what is refused and never run."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from featurize import FeatureCache, load_backbone, run
from featurize.errors import BackboneError, CallError, FingerprintMismatchError

NAME = "resnet18"


@pytest.fixture(scope="module")
def tensors():
    """The state dict of a seeded network whose batch norm has statistics."""
    torch.manual_seed(3)
    network = models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked += 7
    return network.state_dict()


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(tensors, x):
    """What torchvision's own modules give at layer1 and layer4, pooled."""
    network = models.resnet18().eval()
    network.load_state_dict(tensors)
    with torch.inference_mode():
        first = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
        deep = network.layer4(network.layer3(network.layer2(first)))
    return [y.mean((2, 3)) for y in (first, deep)]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(2):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def features(file: Path, x: torch.Tensor, *layers: str) -> list[torch.Tensor]:
    cut = load_backbone(NAME, str(file)).cut([(layer, "avg") for layer in layers])
    with torch.inference_mode():
        return list(cut(x))


def agree(found: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-5) -> bool:
    return bool(((found - wanted).norm(dim=1) <= limit * wanted.norm(dim=1)).all())


ODD = {
    "repeated": lambda: torch.zeros(1).expand(1 << 17, 1 << 17),  # 64 GB in four bytes
    "overlapping": lambda: torch.zeros(200).as_strided((90, 90), (1, 1)),
    "shared": lambda: torch.zeros(1 << 20),
    "sparse": lambda: torch.eye(5).to_sparse(),
    "sparse rows": lambda: torch.eye(5).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
    "without numbers": lambda: torch.empty(5, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_are_not_plain_numbers_are_refused(kind, tensors, images, tmp_path, cli):
    path, odd = tmp_path / "w.pth", ODD[kind]()
    few = {"conv1.weight": tensors["conv1.weight"]}
    torch.save({**few, **{f"odd {k}": odd for k in range(40 if kind == "shared" else 1)}}, path)
    with pytest.raises(BackboneError, match="the tensor odd"):
        load_backbone(NAME, str(path))
    line = ("run", images, "-o", tmp_path / "c.h5", "--backbone", NAME, "--weights", path)
    done = cli(*line)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_an_archive_that_grows_when_it_is_unpacked_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "w.pth").stat().st_size < 100_000
    with pytest.raises(BackboneError, match=r"compressed, and has 40,\d+,\d+ bytes"):
        load_backbone(NAME, str(tmp_path / "w.pth"))


def test_what_numbers_there_are_in_networks_is_read(tensors, x, expected, tmp_path):
    """Two names of one tensor, transposed and complex ones, of every type, beside the network."""
    more = {"again": tensors["fc.weight"], "turned": tensors["fc.weight"].T}
    more["conjugate"] = torch.ones(3, dtype=torch.complex64).conj()
    for kind in ("float64", "bfloat16", "float8_e5m2", "uint16", "int8", "bool"):
        more[kind] = torch.ones(4).to(getattr(torch, kind))
    torch.save({**tensors, **more}, tmp_path / "w.pth")
    assert load_backbone(NAME, str(tmp_path / "w.pth")).weights_sha256


# --- formats and wrappings -----------------------------------------------------------------


def saved(form: str, tensors: dict, folder: Path) -> Path:
    """The same weights, put away in one of the ways people do."""
    parallel = {f"module.{key}": value for key, value in tensors.items()}
    path = folder / f"w{'.safetensors' if 'safetensors' in form else '.pth'}"
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "parallel safetensors":
        save_file(parallel, path)
    else:
        torch.save(
            {
                "plain": tensors,
                "parallel": parallel,
                "old format": tensors,
                "state_dict": {"epoch": 90, "arch": NAME, "state_dict": tensors, "best": 0.7},
                "model": {"model": tensors, "epoch": 3, "lr": [0.1]},
                "model_state_dict": {"model_state_dict": parallel, "loss": torch.tensor(2.0)},
                "wrapped twice": {"state_dict": {"model": parallel}},
                "parameters": {k: nn.Parameter(v, False) for k, v in tensors.items()},
                "with scalars": {**tensors, "epoch": 3, "note": "hello"},
            }[form],
            path,
            _use_new_zipfile_serialization=form != "old format",
        )
    return path


@pytest.mark.parametrize(
    "form",
    [
        *("plain", "parallel", "old format", "state_dict", "model", "model_state_dict"),
        *("wrapped twice", "parameters", "with scalars", "safetensors", "parallel safetensors"),
    ],
)
def test_weights_are_unpacked(form, tensors, x, expected, tmp_path):
    file = saved(form, tensors, tmp_path)
    found = features(file, x, "layer1", "layer4")
    assert all(agree(one, other) for one, other in zip(found, expected, strict=True))
    assert load_backbone(NAME, str(file)).weights == file.name


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_both_suffixes_of_torch(suffix, tensors, x, expected, tmp_path):
    file = tmp_path / f"w{suffix}"
    torch.save(tensors, file)
    assert agree(features(file, x, "layer4")[0], expected[1])


def test_a_wrapped_network_is_evaluated_with_its_statistics(tensors, x, expected, tmp_path):
    """Batch norm's statistics come along: without them the features would be others."""
    without = {k: v for k, v in tensors.items() if "running" not in k}
    torch.save(without, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"bn1\.running_mean is missing"):
        features(tmp_path / "w.pth", x, "layer1")


def test_counters_of_batch_norm_decide_nothing(tensors, x, expected, tmp_path):
    plain = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    torch.save(plain, tmp_path / "w.pth")
    assert agree(features(tmp_path / "w.pth", x, "layer4")[0], expected[1])
    torch.save(tensors, tmp_path / "all.pth")
    digests = {load_backbone(NAME, str(tmp_path / n)).weights_sha256 for n in ("w.pth", "all.pth")}
    assert len(digests) == 1


@pytest.mark.long
def test_old_names_of_densenet(tmp_path):
    """Files from before torch 0.4.1 have dots where modules have none now."""
    torch.manual_seed(0)
    tensors = models.densenet121().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in tensors.items()
    }
    assert set(old) != set(tensors)
    for name, content in (("new", tensors), ("old", old)):
        torch.save(content, tmp_path / f"{name}.pth")
    digests = {
        load_backbone("densenet121", str(tmp_path / f"{n}.pth")).weights_sha256
        for n in ("new", "old")
    }
    assert len(digests) == 1


# --- nothing in a file is ever run ---------------------------------------------------------


class Bomb:
    """What a hostile checkpoint does when it is unpickled: leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "old torch", "nested", "pickle", "zip"])
def test_a_pickle_bomb_is_refused_and_never_run(form, tensors, images, tmp_path, cli):
    trap, file = tmp_path / "exploded", tmp_path / "w.pth"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Bomb(trap)))
    elif form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(trap)))
            archive.writestr("archive/version", "3\n")
    else:
        content = Bomb(trap) if form != "nested" else {**tensors, "extra": [Bomb(trap)]}
        torch.save(content, file, _use_new_zipfile_serialization=form != "old torch")
    line = ("run", images, "-o", tmp_path / "c.h5", "--backbone", NAME, "--weights", file)
    done = cli(*line)
    assert done.exit_code == 2
    assert "w.pth cannot be read as weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert not trap.exists()
    assert not (tmp_path / "c.h5").exists()
    with pytest.raises(BackboneError):
        load_backbone(str(file))
    assert not trap.exists()
    if form == "pickle":  # the bomb is a real one
        pickle.loads(file.read_bytes())  # noqa: S301
        assert trap.exists()


def test_a_whole_network_in_a_file_is_refused(images, tmp_path):
    torch.save(models.squeezenet1_1(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"plain state dict \(torch\.save\(network\.state"):
        load_backbone("squeezenet1_1", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "zeros", "header", "folder"])
def test_a_corrupted_file_is_refused(damage, suffix, tensors, images, tmp_path, cli):
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        content = {
            "empty": b"",
            "text": b"<!doctype html><title>404</title>" * 99,
            "half": whole[: len(whole) // 2],
            "zeros": bytes(4096),
            "header": b"\xff" * 8 + whole[8:],
        }[damage]
        file.write_bytes(content)
    done = cli("run", images, "-o", tmp_path / "c.h5", "--backbone", NAME, "--weights", file)
    assert done.exit_code == 2, done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize(
    "content",
    [{}, [], [torch.zeros(3)], {"epoch": 3}, {"state_dict": {}}, torch.zeros(4), {1: 2}, "text"],
    ids=str,
)
def test_a_file_without_tensors_by_name_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="holds no state dict"):
        load_backbone(NAME, str(tmp_path / "w.pth"))


# --- what has to match ---------------------------------------------------------------------


@pytest.mark.long
def test_another_classifier_is_no_obstacle(tensors, x, expected, images, tmp_path):
    """Fine-tuned for seven classes; without one; and with one of quite another kind."""
    body = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    heads = [
        {"fc.weight": torch.randn(7, 512), "fc.bias": torch.randn(7)},
        {},
        {"fc.0.weight": torch.randn(3, 512), "fc.2.net.bias": torch.randn(9), "ema": torch.ones(2)},
    ]
    for k, head in enumerate(heads):
        file = tmp_path / f"{k}.safetensors"
        save_file({**body, **head}, file)
        found = features(file, x, "layer1", "layer4")
        assert all(agree(one, other) for one, other in zip(found, expected, strict=True))
        done = run(images, tmp_path / f"{k}.h5", backbone=NAME, weights=str(file))
        assert (done.computed, done.layers) == (2, ["layer4"])


@pytest.mark.long
def test_only_what_lies_at_or_below_the_cut_matters(tensors, x, expected, images, tmp_path):
    """The file of a network that was cut off, or differs, above layer1."""
    stem = {k: v for k, v in tensors.items() if k.startswith(("conv1", "bn1", "layer1"))}
    save_file(stem, tmp_path / "stem.safetensors")
    other = stem | {k: torch.zeros(5) for k in tensors if k not in stem}
    torch.save(other, tmp_path / "other.pth")
    for name in ("stem.safetensors", "other.pth"):
        file = tmp_path / name
        assert agree(features(file, x, "layer1")[0], expected[0])
        done = run(images, tmp_path / "c.h5", backbone=NAME, weights=str(file), layers="layer1")
        assert done.computed == 2
        (tmp_path / "c.h5").unlink()
    with pytest.raises(BackboneError, match=r"layer2\.0\.conv1\.weight is missing"):
        features(tmp_path / "stem.safetensors", x, "layer1", "layer2")
    # In a block, too: what comes after the layer asked for is not looked at.
    del stem["layer1.1.conv2.weight"]
    save_file(stem, tmp_path / "stem.safetensors")
    features(tmp_path / "stem.safetensors", x, "layer1.1.conv1")
    with pytest.raises(BackboneError, match=r"layer1\.1\.conv2\.weight is missing"):
        features(tmp_path / "stem.safetensors", x, "layer1")


def test_a_mismatch_names_the_first_keys_and_shapes(tensors, images, tmp_path, cli):
    wrong = dict(tensors)
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    wrong["layer1.0.bn1.weight"] = torch.zeros(65)
    del wrong["layer2.0.conv1.weight"]
    wrong["layer2.0.conv_1.weight"] = tensors["layer2.0.conv1.weight"]
    torch.save(wrong, tmp_path / "w.pth")
    line = ("run", images, "-o", tmp_path / "c.h5", "--backbone", NAME)
    done = cli(*line, "--weights", tmp_path / "w.pth")
    assert done.exit_code == 2
    for part in (
        "w.pth do not fit this network in 3 of ",
        "conv1.weight is (64, 1, 7, 7) but the network has (64, 3, 7, 7)",
        "layer1.0.bn1.weight is (65,) but the network has (64,)",
        "layer2.0.conv1.weight is missing",
    ):
        assert part in done.stderr
    assert "num_batches_tracked" not in done.stderr  # which nobody needs
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.long
def test_weights_of_another_network_are_refused(tensors, tmp_path, images):
    torch.save(tensors, tmp_path / "w.pth")
    for other in ("resnet50", "squeezenet1_1", "seedling"):
        with pytest.raises(BackboneError, match="do not fit this network"):
            run(images, tmp_path / "c.h5", backbone=other, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "c.h5").exists()


def test_a_growing_cache_checks_the_deeper_weights(tensors, images, tmp_path):
    """A deeper layer asked for later: the file has to fit there too, or nothing happens."""
    stem = {k: v for k, v in tensors.items() if k.startswith(("conv1", "bn1", "layer1"))}
    save_file(stem, tmp_path / "w.safetensors")
    options = {"backbone": NAME, "weights": str(tmp_path / "w.safetensors")}
    run(images, tmp_path / "c.h5", **options, layers="layer1")
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(BackboneError, match="is missing"):
        run(images, tmp_path / "c.h5", layers="layer2")
    assert (tmp_path / "c.h5").read_bytes() == before
    assert not (tmp_path / "c.h5.part").exists()


# --- the digest ----------------------------------------------------------------------------


@pytest.mark.long
def test_the_digest_is_of_tensors_not_of_files(tensors, tmp_path):
    """Formats, wrappings, order, float16 and its float32 copy: one network, one digest."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    whole = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    turned = dict(reversed(whole.items()))
    strided = {k: v.t().contiguous().t() if v.ndim == 2 else v for k, v in whole.items()}
    files = {
        "half.pth": half,
        "whole.pth": whole,
        "turned.pth": turned,
        "strided.pth": strided,
        "wrapped.pth": {"state_dict": {f"module.{k}": v for k, v in whole.items()}, "epoch": 1},
        "double.pth": {k: v.double() if v.is_floating_point() else v for k, v in whole.items()},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    save_file(half, tmp_path / "half.safetensors")
    save_file(whole, tmp_path / "whole.safetensors", {"a": "note"})
    names = [*files, "half.safetensors", "whole.safetensors"]
    digests = {n: load_backbone(NAME, str(tmp_path / n)).weights_sha256 for n in names}
    assert len(set(digests.values())) == 1, digests
    assert re.fullmatch("[0-9a-f]{64}", digests["whole.pth"])
    torch.save(tensors, tmp_path / "other.pth")  # not rounded to float16
    assert load_backbone(NAME, str(tmp_path / "other.pth")).weights_sha256 not in digests.values()


@pytest.mark.parametrize("change", ["one number", "name", "shape", "sign of zero", "tensor more"])
def test_the_digest_sees_any_change(change, tensors, tmp_path):
    torch.save(tensors, tmp_path / "a.pth")
    changed = {key: value.clone() for key, value in tensors.items()}
    if change == "one number":
        changed["layer4.1.conv2.weight"].view(-1)[-1] += 1e-6
    elif change == "name":
        changed["fc.extra"] = changed.pop("fc.bias")
    elif change == "shape":
        changed["fc.bias"] = changed["fc.bias"].reshape(10, 100)
    elif change == "sign of zero":
        tensors["fc.bias"][0] = 0.0
        torch.save(tensors, tmp_path / "a.pth")
        changed["fc.bias"][0] = -0.0
    else:
        changed["more"] = torch.zeros(1)
    torch.save(changed, tmp_path / "b.pth")
    digests = {load_backbone(NAME, str(tmp_path / n)).weights_sha256 for n in ("a.pth", "b.pth")}
    assert len(digests) == 2


@pytest.mark.long
def test_one_cache_goes_on_with_either_file(tensors, images, tmp_path):
    """Made with a .pth, continued with the same weights as .safetensors, in float16 too."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    torch.save(half, tmp_path / "w.pth")
    save_file({k: v.float() for k, v in half.items()}, tmp_path / "w.safetensors")
    cache = tmp_path / "c.h5"
    run(images, cache, backbone=NAME, weights=str(tmp_path / "w.pth"), layers="layer1")
    before = FeatureCache(cache).features("layer1").copy()
    Image.new("RGB", (30, 30), "red").save(images / "new.png")
    done = run(images, cache, weights=str(tmp_path / "w.safetensors"), layers="layer4")
    assert (done.computed, done.layers) == (3, ["layer1", "layer4"])
    assert np.array_equal(FeatureCache(cache).features("layer1", [0, 1]), before)
    save_file({k: v.float() + 1 for k, v in half.items()}, tmp_path / "w.safetensors")
    with pytest.raises(FingerprintMismatchError, match="weights_sha256 is"):
        run(images, cache, weights=str(tmp_path / "w.safetensors"))


@pytest.mark.long
def test_a_weights_file_that_is_gone_says_where_to_put_it(tensors, images, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(tensors, file)
    run(images, tmp_path / "c.h5", backbone=NAME, weights=str(file), layers="layer1")
    assert run(images, tmp_path / "c.h5").reused == 2  # found where it was
    file.rename(tmp_path / "moved.pth")
    assert run(images, tmp_path / "c.h5").reused == 2  # nothing to compute, not needed
    Image.new("RGB", (30, 30), "red").save(images / "new.png")
    with pytest.raises(CallError, match=r"is gone; say where it is with --weights FILE"):
        run(images, tmp_path / "c.h5")
    assert run(images, tmp_path / "c.h5", weights=str(tmp_path / "moved.pth")).computed == 1


def test_float16_weights_compute_in_float32(squeezenet_weights, tmp_path):
    """The published SqueezeNet lies there in float16; what runs is float32."""
    half = load_file(squeezenet_weights)
    assert any(tensor.dtype == torch.float16 for tensor in half.values())
    network = models.squeezenet1_1().eval()
    network.load_state_dict({key: value.float() for key, value in half.items()})
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    cut = load_backbone("squeezenet1_1", str(squeezenet_weights)).cut([("features.12", "avg")])
    assert {t.dtype for t in cut.state_dict().values()} == {torch.float32}
    with torch.inference_mode():
        assert agree(cut(x)[0], network.features(x).mean((2, 3)))
