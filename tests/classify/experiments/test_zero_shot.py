"""`classify zeroshot`: what CLIP itself would say, as a linear head in the house's own file.

A tiny network of open_clip with random weights stands for a trained one. How its image tower is
loaded is another room's business: `load_backbone` is stood in for.
"""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

import featurize
from classify import (
    LabelTable,
    compare,
    evaluate,
    load_head,
    make_zero_shot_head,
    predict,
    save_head,
)
from classify.errors import CallError, HeadMismatchError, TextTowerError
from classify.heads.models import LinearModel
from classify.training.zero_shot import PROMPTS
from featurize.cache.reader import FeatureCache
from featurize.errors import BackboneError

open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
import torch  # noqa: E402 - comes with open_clip

CLASSES = ["ant", "bee", "sea_urchin", "yak"]
N, WIDTH, DIM = 80, 16, 24
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": DIM, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SIGLIP = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "nobody/no-tokenizer"}}
BUILT_ELSEWHERE = {**CONFIG, "text_cfg": {"hf_model_name": "nobody/no-model"}}
OTHER = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "layers": 1}}
TEXT = {"text_model": "tiny-clip"}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    """The tiny architectures, known to open_clip by name."""
    folder = tmp_path_factory.mktemp("configs")
    named = {"tiny-clip": CONFIG, "tiny-siglip": SIGLIP, "tiny-hf": BUILT_ELSEWHERE}
    for name, config in {**named, "tiny-other": OTHER}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    network = open_clip.CLIP(**CONFIG).eval()
    # By open_clip's own beginning all images and all texts lie in one place.
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, 1)
    return network


@pytest.fixture(scope="module")
def checkpoint(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def images(clip):
    """Images, and what lies before the projection: (N, D)."""
    torch.manual_seed(1)
    pixels = 3 * torch.randn(N, 3, 16, 16)
    projection, clip.visual.proj = clip.visual.proj, None
    with torch.inference_mode():
        features = clip.visual(pixels).numpy()
    clip.visual.proj = projection
    return pixels, features


@pytest.fixture(scope="module")
def clip_logits(clip, images):
    """What open_clip itself makes of the images and these prompts."""
    tokenizer = open_clip.get_tokenizer("tiny-clip")
    names = [name.replace("_", " ") for name in CLASSES]
    texts = open_clip.build_zero_shot_classifier(clip, tokenizer, names, PROMPTS)
    with torch.inference_mode():
        embeddings = clip.encode_image(images[0], normalize=True)
        return (clip.logit_scale.exp() * embeddings @ texts).numpy()


@pytest.fixture(scope="module")
def cache(images, make_cache, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "c.h5"
    rng = np.random.default_rng(0)
    layers = {"early": rng.normal(size=(N, 8)).astype(np.float32), "pre_logits": images[1]}
    return make_cache(path, layers, backbone="vit_tiny_clip")


@pytest.fixture(scope="module")
def table(cache, clip_logits):
    """Labels that CLIP mostly agrees with."""
    labels = clip_logits.argmax(axis=1)
    labels[:: N // 16] = np.arange(16) % 4
    return LabelTable("beasts", "beasts.csv", cache.paths, [CLASSES[k] for k in labels])


@pytest.fixture(autouse=True)
def loader(clip, cache, checkpoint, monkeypatch):
    """Stand in for `load_backbone`: the file's image tower by the cache's names."""

    def load_backbone(name, weights, *, preprocess):
        assert (name, weights) == ("vit_tiny_clip", str(checkpoint))
        assert preprocess == cache.extractor.preprocess
        return loaded

    loaded = SimpleNamespace(
        weights_sha256=cache.extractor.weights_sha256, projection=clip.visual.proj.detach().T
    )
    monkeypatch.setattr(featurize, "load_backbone", load_backbone)
    return loaded


def test_it_says_what_clip_says(cache, checkpoint, images, clip_logits, clip, tmp_path):
    head, record = make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    assert isinstance(head.scorer, LinearModel)
    assert len(set(clip_logits.argmax(axis=1))) == len(CLASSES)  # the test is no empty one
    scores = head.scores(images[1])
    assert np.array_equal(scores.argmax(axis=1), clip_logits.argmax(axis=1))
    lengths = np.linalg.norm(images[1] @ clip.visual.proj.detach().numpy(), axis=1)
    assert np.allclose(scores / lengths[:, None], clip_logits, rtol=1e-4, atol=1e-4)
    assert (record.n_train, record.n_test, record.accuracy) == (0, 0, None)
    save_head(head, tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    assert np.array_equal(loaded.scores(images[1]), scores)
    assert loaded.record["prompts"] == list(PROMPTS)
    assert (loaded.prepare, loaded.head, len(loaded.seen)) == ("standardise", "zero-shot", 0)


def test_without_labels_it_claims_no_probabilities(cache, checkpoint):
    head, _ = make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    with pytest.raises(CallError, match="scores but no probabilities"):
        head.predict_proba(np.zeros((1, DIM)))
    found = predict(head, cache.path)
    assert (found.kind, len(found.paths)) == ("score", N)


def test_labels_give_a_temperature_and_a_score_but_no_prediction(
    cache, checkpoint, table, images, clip_logits
):
    head, record = make_zero_shot_head(cache, table, text=checkpoint, **TEXT)
    assert np.array_equal(head.scores(images[1]).argmax(axis=1), clip_logits.argmax(axis=1))
    assert (record.n_train, record.n_test, record.task) == (0, 16, "beasts")
    assert record.bias is None
    assert record.temperature == head.temperature > 0
    truth = np.array([CLASSES.index(label) for label in table.labels])
    assert evaluate(head, cache, table).metrics["accuracy"] == record.accuracy
    assert record.validation == pytest.approx(
        np.delete(
            clip_logits.argmax(axis=1) == truth, ~head.trained_on(cache.column("sha256")), 0
        ).mean()
    )
    assert head.predict_proba(images[1]).sum(axis=1) == pytest.approx(1)


def test_it_is_ranked_beside_trained_heads(cache, checkpoint, table, tmp_path):
    head, record = make_zero_shot_head(cache, table, text=checkpoint, **TEXT)
    save_head(head, tmp_path / "h")
    found = compare(cache, table, "ncm", "pre_logits", zeroshot=[tmp_path / "h"], jobs=1)
    assert [(r.head, r.n_train) for r in found.records] == [("ncm", 64), ("zero-shot", 0)]
    ranked = found.records[1]
    for name in ("accuracy", "accuracy_ci", "validation", "temperature", "recall", "layer"):
        assert getattr(ranked, name) == getattr(record, name)
    assert found.best is ranked  # CLIP agrees with these labels
    assert found.records[0].distinguishable is not None
    again = compare(cache, table, "ncm", "pre_logits", zeroshot=[tmp_path / "h"], jobs=1)
    assert again.n_reused == 1


def test_what_cannot_be_ranked_is_refused(cache, checkpoint, table, tmp_path):
    from classify import fit

    trained = fit(cache, table, "ncm", "pre_logits").head
    save_head(trained, tmp_path / "ncm")
    with pytest.raises(CallError, match="is a trained ncm head"):
        compare(cache, table, "ncm", zeroshot=[tmp_path / "ncm"], jobs=1)
    head, _ = make_zero_shot_head(cache, text=checkpoint, classes=["a", "b"], **TEXT)
    save_head(head, tmp_path / "h")
    with pytest.raises(HeadMismatchError, match=r"knows a, b, which are not the classes of beasts"):
        compare(cache, table, "ncm", zeroshot=[tmp_path / "h"], jobs=1)
    with pytest.raises(CallError, match="--zeroshot goes without --repeats"):
        compare(cache, table, "ncm", zeroshot=[tmp_path / "h"], repeats=2, jobs=1)


def test_the_text_tower_of_another_network_is_refused(cache, checkpoint, loader):
    loader.weights_sha256 = "cd" * 32
    with pytest.raises(TextTowerError, match=r"abababababab\.\.\.\) than those in .*cdcdcdcdcdcd"):
        make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)


def test_another_projection_or_layer_is_refused(cache, checkpoint, loader, make_cache, tmp_path):
    loader.projection = torch.ones(WIDTH - 1, DIM)
    with pytest.raises(TextTowerError, match="images have 15 numbers and texts of tiny-clip have"):
        make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    loader.projection = None  # then the features themselves are in the shared space
    with pytest.raises(HeadMismatchError, match="has no layer pre_logits of 16 numbers"):
        make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    shared = make_cache(
        tmp_path / "s.h5", {"pre_logits": np.eye(WIDTH, dtype="f4")}, backbone="vit_tiny_clip"
    )
    head, _ = make_zero_shot_head(shared, text=checkpoint, classes=CLASSES, **TEXT)
    scale = np.exp(2.6592)  # of a CLIP that was not trained
    assert np.linalg.norm(head.scorer.coef, axis=1) == pytest.approx(scale, rel=1e-3)


def test_an_activation_that_differs_is_said(cache, checkpoint, monkeypatch, make_cache, tmp_path):
    head, _ = make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    assert head.notices == ()
    layers = {"pre_logits": np.ones((2, DIM), np.float32)}
    quick = make_cache(tmp_path / "q.h5", layers, backbone="vit_tiny_clip_quickgelu")
    loaded = featurize.load_backbone(
        "vit_tiny_clip", str(checkpoint), preprocess=cache.extractor.preprocess
    )
    monkeypatch.setattr(featurize, "load_backbone", lambda *_, **__: loaded)
    head, _ = make_zero_shot_head(quick, text=checkpoint, classes=CLASSES, **TEXT)
    assert "tiny-clip has GELU and vit_tiny_clip_quickgelu has QuickGELU" in head.notices[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text_model": "tiny-clap"}, TextTowerError, r"no architecture 'tiny-clap' \(did you"),
        ({"text_model": "hf-hub:a/b"}, TextTowerError, "open_clip has no architecture"),
        ({"text_model": "tiny-hf"}, TextTowerError, "built by transformers from a file of the hub"),
        ({"text_model": "coca_ViT-B-32"}, TextTowerError, "writes captions too"),
        ({"text_model": "tiny-siglip"}, TextTowerError, "downloaded unasked: .*no-tokenizer"),
        ({"text_model": "tiny-other"}, TextTowerError, "has more in its text tower"),
        ({"text_model": "ViT-B-32"}, BackboneError, "do not fit this network in"),
        ({"text_model": "ViT-B-32", "text": "laion2b"}, TextTowerError, "has no weights 'laion2b'"),
        (
            {"text_model": "ViT-B-32", "text": "laion2b_s34b_b79k"},
            TextTowerError,
            "not in the local cache of the hub, and nothing is downloaded unasked",
        ),
        ({"text": "gone.safetensors"}, FileNotFoundError, "gone.safetensors does not exist"),
        ({"classes": ["a"]}, CallError, "class names are two or more"),
        ({"classes": ["a", "a"]}, CallError, "class names are two or more, each once"),
        ({"prompts": ["a photo"]}, CallError, "prompts are templates, each with {}"),
        ({"prompts": []}, CallError, "prompts are templates, each with {}"),
    ],
)
def test_what_cannot_be_is_refused(
    cache, checkpoint, change, error, message, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    options = {"text": checkpoint, "text_model": "tiny-clip", "classes": CLASSES, **change}
    with pytest.raises(error, match=message):
        make_zero_shot_head(cache, **options)


def test_a_bias_is_that_of_the_checkpoint(cache, clip, checkpoint, loader, monkeypatch):
    """As SigLIP has one; and the file may be one that torch has saved."""
    path = checkpoint.with_name("biased.pt")
    torch.save({"state_dict": clip.state_dict() | {"logit_bias": torch.tensor([-10.0])}}, path)
    monkeypatch.setattr(featurize, "load_backbone", lambda *_, **__: loader)
    biased, _ = make_zero_shot_head(cache, text=path, classes=CLASSES, **TEXT)
    plain, _ = make_zero_shot_head(cache, text=checkpoint, classes=CLASSES, **TEXT)
    assert biased.scorer.intercept.tolist() == [-10.0] * 4
    assert plain.scorer.intercept.tolist() == [0.0] * 4
    assert np.array_equal(biased.scorer.coef, plain.scorer.coef)


@pytest.mark.parametrize("name", ["logit_scale", "text_projection"])
def test_a_damaged_checkpoint_is_refused(cache, clip, checkpoint, name, loader, monkeypatch):
    tensors = dict(clip.state_dict())
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    path = checkpoint.with_name(f"{name}.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    monkeypatch.setattr(featurize, "load_backbone", lambda *_, **__: loader)
    with pytest.raises(TextTowerError, match=r"missing or no number|not finite"):
        make_zero_shot_head(cache, text=path, classes=CLASSES, **TEXT)


def test_the_command(cache, checkpoint, table, make_table, tmp_path):
    from classify.cli.app import app

    rows = list(zip(table.paths, table.labels, strict=True))
    csv = make_table(tmp_path / "beasts.csv", "path,label", rows)
    (tmp_path / "prompts.txt").write_text("a {} at night\n\n a {} by day\n")
    line = ["zeroshot", cache.path, "--text", checkpoint, "--text-model", "tiny-clip"]

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    labelled = ["--labels", csv, "--prompts", tmp_path / "prompts.txt"]
    done = call(*line, "-o", tmp_path / "h", *labelled, "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["head"], record["n_train"], record["n_test"]) == ("zero-shot", 0, 16)
    assert load_head(tmp_path / "h").record["prompts"] == ["a {} at night", "a {} by day"]
    done = call(*line, "-o", tmp_path / "h", "--classes", "ant, bee,yak")
    assert done.exit_code == 0, done.stderr
    assert load_head(tmp_path / "h").classes == ["ant", "bee", "yak"]
    assert "no image was read." in done.stdout
    done = call(*line, "-o", tmp_path / "h", "--classes", "a,b", "--labels", csv)
    assert done.exit_code == 2
    assert "give one of the two" in done.stderr


@pytest.mark.long
def test_without_open_clip_the_extra_is_named(cache, checkpoint, tmp_path):
    (tmp_path / "open_clip.py").write_text("raise ImportError('no', name='open_clip')\n")
    line = ["zeroshot", cache.path, "--text", checkpoint, "--text-model", "ViT-B-32"]
    code = "import sys; from classify.cli.app import app; app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, line), "--classes", "a,b", "-o", tmp_path / "h"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'headgraft[openclip]'" in done.stderr


@pytest.mark.long
def test_a_report_lists_it(cache, checkpoint, table, make_table, tmp_path, run_cli):
    head, _ = make_zero_shot_head(cache, table, text=checkpoint, **TEXT)
    save_head(head, tmp_path / "h")
    rows = list(zip(table.paths, table.labels, strict=True))
    csv = make_table(tmp_path / "beasts.csv", "path,label", rows)
    line = ["report", cache.path, "-o", tmp_path / "r.html", "--labels", csv, "--heads", "ncm"]
    done = run_cli(*line, "--zeroshot", tmp_path / "h", "--layers", "pre_logits")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "zero-shot" in page
    counts = re.search(r"(\d+) trained, (\d+) found beside the cache", page).groups()
    assert sum(map(int, counts)) == 1


def test_a_cache_is_all_that_it_reads(cache, checkpoint):
    """An opened cache and a path are the same to it."""
    by_path, _ = make_zero_shot_head(cache.path, text=str(checkpoint), classes=CLASSES, **TEXT)
    opened, _ = make_zero_shot_head(
        FeatureCache(cache.path), text=checkpoint, classes=CLASSES, **TEXT
    )
    assert np.array_equal(by_path.scorer.coef, opened.scorer.coef)
