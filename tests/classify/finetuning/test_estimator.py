"""A network trained too: what changes, what stays, where it starts, and how it is trained."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from classify import SoftmaxClassifier, fit, save_head
from classify.data.splits import split_validation
from classify.errors import CallError, HeadMismatchError
from classify.finetuning.config import compute_lr_scale
from classify.finetuning.network import FineTuneNetwork
from classify.finetuning.trainer import TrainProgress
from classify.finetuning.tuned_part.stages import find_last_weighted_stage
from featurize import FeatureCache, load_backbone
from featurize.backbones.pretrained.torchvision_models import SEEDLING_WEIGHTS_PATH
from featurize.errors import RunInterruptedError

# Without the counters of batches, which nothing reads.
PLAIN = {k: v for k, v in load_file(SEEDLING_WEIGHTS_PATH).items() if not k.endswith("_tracked")}


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def changed(model) -> set[str]:
    return {k for k, tensor in PLAIN.items() if not torch.equal(tensor, model.network_[k])}


def statistics(names) -> set[str]:
    return {name for name in names if "running_" in name}


# --- what changes, and what stays ----------------------------------------------------------


@pytest.mark.long
def test_the_seed_decides_everything(fitted, tuner, pictured):
    again = tuner(tune="all").fit(pictured.paths, pictured.labels)
    first = fitted(tune="all")
    assert equal(first.network_, again.network_)
    assert np.array_equal(first.predict_proba(pictured.paths), again.predict_proba(pictured.paths))
    other = tuner(tune="all", seed=1).fit(pictured.paths, pictured.labels)
    assert not equal(first.network_, other.network_)


def test_only_what_is_tuned_changes_and_batch_norm_keeps_its_statistics(fitted):
    assert changed(fitted(augment="none")) == {
        name for name in PLAIN if name.startswith("stage4") and name not in statistics(PLAIN)
    }
    assert changed(fitted(tune="all")) == PLAIN.keys() - statistics(PLAIN)
    trained = changed(fitted(maps=True, batch_norm="trained"))
    assert statistics(trained) == {n for n in statistics(PLAIN) if n.startswith("stage4")}


def test_cached_maps_train_as_images_do(fitted, pictured):
    # From a random classifier: a probe has so small a loss here that its gradients are rounding.
    plain = fitted(augment="none", init_head="random")
    mapped = fitted(maps=True, init_head="random")
    assert {n for n in PLAIN if not n.startswith("stage4")}.isdisjoint(changed(mapped))
    # The maps agree to float32 rounding, as batches of other sizes are convolved in another order.
    # AdamW turns gradients that are zero but for rounding into steps of either sign, so single
    # weights may part by a step or two; all of them together must not.
    step = torch.cat([(plain.network_[n] - PLAIN[n]).ravel() for n in changed(plain)])
    apart = torch.cat([(plain.network_[n] - mapped.network_[n]).ravel() for n in changed(plain)])
    share = float(apart.norm() / step.norm())
    assert share < 0.02
    one, other = plain.history_[-1], mapped.history_[-1]
    assert one.loss == pytest.approx(other.loss, rel=1e-3)
    # A loss so near to zero parts by no greater share than the weights do.
    assert one.validation_loss == pytest.approx(other.validation_loss, rel=share)
    assert one.validation == other.validation
    scores = plain.decision_scores(pictured.paths)
    there = mapped.set_params(root=pictured.images).decision_scores(pictured.paths)
    mapped.set_params(root="nowhere")
    assert (scores.argmax(axis=1) == there.argmax(axis=1)).all()


def test_earlier_stages_learn_more_slowly(tuner, pictured):
    # One step of AdamW moves every weight by about its learning rate, whatever the gradient.
    model = tuner(tune="all", batch_size=64, learning_rate=1e-3)
    model.fit(pictured.paths, pictured.labels)
    moved = {}
    for stage in ("stage2", "stage3", "stage4"):
        names = [n for n in PLAIN if n.startswith(stage) and PLAIN[n].ndim == 4]
        steps = torch.cat([(model.network_[n] - PLAIN[n]).abs().ravel() for n in names])
        moved[stage] = float(steps.median())
    assert moved["stage4"] == pytest.approx(1e-3, rel=0.1)
    assert moved["stage3"] == pytest.approx(0.7e-3, rel=0.1)
    assert moved["stage2"] == pytest.approx(0.49e-3, rel=0.1)


def test_weights_decay_and_biases_do_not():
    net = FineTuneNetwork(load_backbone("seedling"), "all", 3, "linear")
    groups = list(net.param_groups(1, 0.7, 0.75, 0.02))
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in net.trainable_parameters().items():
        assert decays.pop(id(parameter)) == (0.02 if parameter.ndim > 1 else 0), name
    assert not decays
    # A GPU starts anew for each group.
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups) < 14


def test_the_rate_rises_and_then_falls_as_a_cosine():
    rates = [compute_lr_scale(step, 200, 20) for step in range(200)]
    assert rates[:20] == pytest.approx(np.arange(1, 21) / 20)
    angle = np.pi * np.arange(180) / 180
    assert rates[20:] == pytest.approx((1 + np.cos(angle)) / 2)
    assert [compute_lr_scale(step, 2, 1) for step in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("seedling", "stage4"),
        ("resnet18", "layer4"),
        ("squeezenet1_1", "features.12"),
        # What is last in these has no weights, or a normalisation's alone.
        ("mobilenet_v3_small", "features.12"),
    ],
)
def test_last_is_the_deepest_stage_that_has_weights(name, layer):
    recipe = {"resize": 64, "crop": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    backbone = load_backbone(name, preprocess=recipe, frozen_weights=False)
    assert find_last_weighted_stage(backbone) == layer
    assert FineTuneNetwork(backbone, layer, 2, "linear").trainable_parameters()


# --- where it starts -----------------------------------------------------------------------


@pytest.mark.long
def test_it_starts_as_the_linear_probe(tuner, pictured):
    # A step this small changes nothing: what comes out is what went in.
    model = tuner(maps=True, learning_rate=1e-30).fit(pictured.paths, pictured.labels)
    assert model.images_run_ == 60 + 6  # an epoch and the last judgement; none for the start
    cache = FeatureCache(pictured.cache)
    training, _ = split_validation(
        np.unique(pictured.labels, return_inverse=True)[1], list("179"), None, None, 0
    )
    X = np.asarray(cache.features("stage4"))
    y = np.array(pictured.labels)[training]
    path = SoftmaxClassifier(random_state=0).fit(X[training], y).path_
    near = next(C for C, loss in path if loss <= min(each for _, each in path) + 0.1)
    probe = SoftmaxClassifier(near, random_state=0).fit(X[training], y)
    expected = probe.decision_function(X)
    assert np.allclose(model.head_.scores(X), expected, atol=1e-3 * np.abs(expected).max())
    assert (model.head_.predict(X) == probe.predict(X)).all()


@pytest.mark.long
def test_it_starts_as_a_given_head(tuner, pictured, tmp_path):
    head, _ = fit(pictured.cache, layer="stage4", test_size=0, prepare="standardise")
    save_head(head, tmp_path / "h")
    X = np.asarray(FeatureCache(pictured.cache).features("stage4"))
    for given in (head, str(tmp_path / "h")):
        model = tuner(maps=True, learning_rate=1e-30, init_head=given)
        model.fit(pictured.paths, pictured.labels)
        assert np.allclose(model.head_.scores(X), head.scores(X), rtol=1e-4, atol=1e-3)


def test_a_probe_is_a_better_start_than_chance(fitted):
    probe, random = fitted(maps=True).history_[0], fitted(maps=True, init_head="random").history_[0]
    assert probe.loss < random.loss
    assert probe.validation_loss < random.validation_loss


@pytest.mark.long
def test_heads_of_something_else_are_refused(tuner, pictured):
    head, _ = fit(pictured.cache, layer="stage4", prepare="standardise")
    digest = replace(head, source=replace(head.source, weights_sha256="0" * 64))
    cropped = replace(head.source.preprocess, crop=30)
    cases = {
        "another classes": replace(head, classes=["a", "b", "c"]),
        "another layer": fit(pictured.cache, layer="stage2", prepare="standardise")[0],
        "another weights_sha256": digest,
        "another preprocess.crop": replace(head, source=replace(head.source, preprocess=cropped)),
        "from a knn head: it is not linear": fit(
            pictured.cache, head="knn", layer="stage4", prepare="standardise"
        )[0],
    }
    for message, given in cases.items():
        with pytest.raises(HeadMismatchError, match=message):
            tuner(init_head=given).fit(pictured.paths, pictured.labels)
    with pytest.raises(CallError, match="mlp cannot start from a head"):
        tuner(init_head=head, classifier="mlp").fit(pictured.paths, pictured.labels)
    with pytest.raises(FileNotFoundError, match="classify fit"):
        tuner(init_head="none.head").fit(pictured.paths, pictured.labels)


# --- how it is trained ---------------------------------------------------------------------


@pytest.mark.long
def test_mixup_mixes_images_and_maps(fitted):
    for options in ({"maps": True}, {"augment": "none"}):
        mixed, plain = fitted(mixup=0.4, **options), fitted(**options)
        assert np.isfinite(mixed.history_[0].loss)
        assert not equal(mixed.network_, plain.network_)


def test_balanced_classes_weigh_alike(tuner, pictured):
    keep = np.array([k for k, label in enumerate(pictured.labels) if label != "1" or k % 3 == 0])
    paths, labels = np.array(pictured.paths)[keep], np.array(pictured.labels)[keep]
    plain, fair = (
        tuner(maps=True, init_head="random", class_weight=weight).fit(paths, labels)
        for weight in (None, "balanced")
    )
    X = np.asarray(FeatureCache(pictured.cache).features("stage4"))
    rare = [m.head_.predict_proba(X)[:, 0].mean() for m in (plain, fair)]
    assert rare[0] < rare[1]
    with pytest.raises(CallError, match="balanced or nothing, not 'blanced'"):
        tuner(class_weight="blanced").fit(paths, labels)


def test_from_scratch_with_a_hidden_layer(tuner, pictured):
    model = tuner(tune="all", weights="none", classifier="mlp", learning_rate=1e-3)
    model.fit(pictured.paths, pictured.labels)
    assert model.head_.head == "mlp"
    assert model.head_.scorer.hidden.shape == (512, 512)
    batches = [t for name, t in model.network_.items() if name.endswith("num_batches_tracked")]
    assert batches
    assert all(t > 0 for t in batches)  # its own statistics, as nothing came with them
    with pytest.raises(CallError, match="--cache out"):
        tuner(weights="none", cache=pictured.cache).fit(pictured.paths, pictured.labels)


@pytest.mark.long
def test_it_stops_where_nothing_gets_better_and_keeps_the_best(tuner, pictured):
    held = np.arange(60) % 3 == 0
    # So small a rate changes no weight: the first epoch stays the best.
    model = tuner(maps=True, epochs=6, patience=2, learning_rate=1e-12)
    model.fit(pictured.paths, pictured.labels, validation=held)
    losses = [epoch.validation_loss for epoch in model.history_]
    best = int(np.argmin(losses))
    assert (best, len(losses)) == (0, 3)
    model.set_params(root=pictured.images)
    right = model.predict(np.array(pictured.paths)[held]) == np.array(pictured.labels)[held]
    assert right.mean() == pytest.approx(model.history_[best].validation)


def test_groups_stay_on_one_side():
    rng = np.random.default_rng(0)
    for seed in range(20):
        y, groups = rng.integers(0, 3, 90), rng.integers(0, 25, 90)
        training, held = split_validation(y, list("abc"), groups, None, seed)
        assert (training ^ held).all()
        assert held.any()
        assert not set(groups[training]) & set(groups[held])


def test_the_users_own_validation_part_is_taken(tuner, pictured):
    held = np.arange(60) % 4 == 0
    model = tuner(maps=True, learning_rate=1e-30)
    model.fit(pictured.paths, pictured.labels, validation=held)
    assert model.n_train_ == 45
    X = np.asarray(FeatureCache(pictured.cache).features("stage4"))
    right = model.head_.predict(X) == np.array(pictured.labels)
    assert model.history_[0].validation == pytest.approx(right[held].mean())


@pytest.mark.long
def test_an_epoch_that_does_not_fit_is_left_after_a_few_steps(tuner, pictured):
    """Steps of a second, 54 of them, in 40 seconds: told after three."""
    steps = []

    def report(step: TrainProgress) -> None:
        if step.stage.startswith("epoch"):
            steps.append(step.done)
            time.sleep(1)

    model = tuner(maps=True, batch_size=1)
    with pytest.raises(RunInterruptedError, match="no epoch fits into the time limit: the first"):
        model.fit(
            pictured.paths, pictured.labels, deadline=time.monotonic() + 40, report=report, n_test=9
        )
    assert steps == [1, 2, 3]


@pytest.mark.long
def test_an_epoch_that_slows_down_is_left_and_the_earlier_ones_count(tuner, pictured):
    said = []

    def report(step: TrainProgress) -> None:
        if step.stage.startswith("epoch 2"):
            time.sleep(1)

    model = tuner(maps=True, batch_size=1, epochs=9)
    deadline = time.monotonic() + 30
    model.fit(pictured.paths, pictured.labels, deadline=deadline, report=report, say=said.append)
    assert time.monotonic() < deadline
    assert len(model.history_) == 1
    assert len(model.validated_) == 6
    assert any("no room for another epoch: 1 of 9 are done" in sentence for sentence in said)
