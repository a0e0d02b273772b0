"""How many labels are doubted, how many of them to expect wrong, and none without reason."""

import numpy as np
import pytest

from classify.checks.label_issues import review_labels
from classify.data.tasks import Task
from classify.evaluation.predictions import HeldOutPredictions, summarise_decision_values

N, K = 4000, 10


def make_world(n_wrong: int, seed: int, strength: float = 2.0, temperature: float = 1.0):
    """A head, calibrated at a temperature of 1, and labels drawn as it says.

    Returns
    -------
    The task, the predictions and which labels were then changed at random.
    """
    rng = np.random.default_rng(seed)
    scores = strength * rng.normal(size=(N, K))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(K, p=p) for p in probabilities])
    wrong = rng.choice(N, n_wrong, replace=False)
    y[wrong] = (y[wrong] + rng.integers(1, K, n_wrong)) % K
    rows, classes = np.arange(N), [str(k) for k in range(K)]
    task = Task("t", classes, rows, y, np.full(N, "train"), None, (), rows)
    predictions = summarise_decision_values(
        rows, y, scores, np.arange(K), temperature=temperature, probabilistic=True
    )
    return task, predictions, {*wrong.tolist()}


def test_mistakes_of_a_calibrated_head_are_no_wrong_labels():
    listed = [len(review_labels(*make_world(0, seed)[:2]).issues) for seed in range(8)]
    assert sorted(listed)[5] == 0
    review = review_labels(*make_world(0, 0)[:2])
    assert review.n_left_out > 100  # so many have a label five times likelier
    assert review.n_judged == N


@pytest.mark.parametrize("seed", range(3))
def test_as_many_are_wrong_as_is_said(seed):
    task, predictions, wrong = make_world(160, seed, strength=4.0)
    review = review_labels(task, predictions)
    rows = [issue.row for issue in review.issues]
    assert review.noise_rate == pytest.approx(0.04, abs=0.01)
    n_found = len(wrong & {*rows})
    assert n_found == pytest.approx(review.expected_wrong, rel=0.2)
    assert n_found >= 100
    assert len(wrong & {*rows[:40]}) >= 36
    order = [issue.wrong_probability for issue in review.issues]
    assert order == sorted(order, reverse=True)
    assert min(order) >= 0.1


def test_a_softened_head_is_sharpened_again():
    """Wrong labels make the temperature too high; the number of them is found all the same."""
    task, predictions, _ = make_world(160, 0, strength=8.0, temperature=2.0)
    assert review_labels(task, predictions).noise_rate == pytest.approx(0.04, abs=0.015)


def test_what_is_said_of_the_list():
    task, predictions, _ = make_world(160, 0, strength=4.0)
    review = review_labels(task, predictions)
    expected = round(review.expected_wrong)
    assert review.describe().startswith(
        f"By the head's own doubts perhaps {expected} of {len(review.issues)} are wrong: "
        "look before you change one."
    )
    assert f"{review.n_left_out} further labels that it doubts are left out" in review.describe()
    nothing = HeldOutPredictions.concatenate([predictions])
    nothing.calibrated_loss[:] = np.nan
    assert review_labels(task, nothing).issues == []
