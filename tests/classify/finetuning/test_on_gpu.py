"""What only a GPU can show of training; `HEADGRAFT_GPU_TESTS_ON=cpu` rehearses it."""

import numpy as np
import pytest
import torch

from classify import load_head, predict, save_head

pytestmark = pytest.mark.gpu


def test_what_was_trained_on_a_gpu_is_what_predicts(gpu, tuner, pictured, tmp_path):
    """Steps may be in bfloat16 there; scores are in float32, and `predict` gives them."""
    model = tuner(device=gpu, tune="all", epochs=2).fit(pictured.paths, pictured.labels)
    losses = [epoch.loss for epoch in model.history_]
    assert np.isfinite(losses).all()
    save_head(model.head_, tmp_path / "M", {k: v.numpy() for k, v in model.network_.items()})
    found = predict(load_head(tmp_path / "M"), pictured.images, top=3)
    assert found.paths == pictured.paths
    probabilities = np.sort(model.predict_proba(pictured.paths))[:, ::-1]
    assert np.allclose(found.values, probabilities, atol=1e-3)
    assert {tensor.device.type for tensor in model.network_.values()} == {"cpu"}


def test_a_gpu_and_the_processor_train_alike(gpu, tuner, pictured):
    scores = [
        tuner(device=device, epochs=2)
        .fit(pictured.paths, pictured.labels)
        .score(pictured.paths, pictured.labels)
        for device in ("cpu", gpu)
    ]
    assert abs(scores[0] - scores[1]) <= 0.05


@pytest.mark.parametrize("begun_on_gpu", [False, True])
def test_one_device_goes_on_where_the_other_stopped(
    gpu, tuner, pictured, tmp_path, one_epoch_deadline, begun_on_gpu
):
    first, then = (gpu, "cpu") if begun_on_gpu else ("cpu", gpu)
    options = {"checkpoint": tmp_path / "M.part"}
    short = tuner(device=first, epochs=2)
    short.fit(pictured.paths, pictured.labels, deadline=one_epoch_deadline(), **options)
    assert len(short.history_) == 1
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classify.time_limit.EpochBudget.allows_epoch", lambda budget: True)
        whole = tuner(device=then, epochs=2)
        whole.fit(pictured.paths, pictured.labels, say=said.append, **options)
    assert any("going on after epoch 1" in text for text in said)
    assert [epoch.loss for epoch in whole.history_[:1]] == [short.history_[0].loss]
    assert len(whole.history_) == 2
    assert np.isfinite(whole.history_[1].loss)


def test_a_fit_leaves_a_gpus_random_numbers_alone(gpu, tuner, pictured):
    if gpu == "cpu":
        pytest.skip("the processor's are tested everywhere")
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state(gpu)
    tuner(device=gpu, mixup=0.2).fit(pictured.paths, pictured.labels)
    assert torch.equal(torch.cuda.get_rng_state(gpu), before)
