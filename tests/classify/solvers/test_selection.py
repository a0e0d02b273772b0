"""The path from strong to weak regularisation: where it ends, and which setting is taken."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss, zero_one_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify import HeadClassifier
from classify.evaluation.temperature import fit_temperature
from classify.heads.registry import get_head_spec
from classify.solvers.selection import PathPoint, select_param

M = 16  # held-out images
Y = np.zeros(M, int)


def step(setting, mean, error=0.0, converged=True) -> PathPoint:
    """A setting with that mean log loss, which differs by image."""
    losses = mean + error * np.sqrt(M) * np.tile([-1, 1], M // 2)
    return PathPoint(setting, np.stack([-np.log(np.expm1(losses)), np.zeros(M)], axis=1), converged)


def walk(*losses, **options):
    """What is chosen of settings 0, 1, 2, ... with these mean losses, and how many were tried."""
    tried = []

    def steps():
        for setting, loss in enumerate(losses):
            tried.append(setting)
            yield loss if isinstance(loss, PathPoint) else step(setting, loss, **options)

    return select_param(steps(), Y, "log"), len(tried)


def test_it_ends_when_the_loss_has_risen_twice_in_a_row_and_asks_for_no_more():
    choice, tried = walk(3, 2, 1, 1.5, 1.6, 0.1)
    assert (choice.param, tried) == (2, 5)
    assert [setting for setting, _ in choice.path] == [0, 1, 2, 3, 4]
    assert [mean for _, mean in choice.path] == pytest.approx([3, 2, 1, 1.5, 1.6])


def test_one_rise_or_standing_still_is_not_the_end():
    choice, tried = walk(2, 1, 1.2, 1.1, 1.3, 0.5)
    assert (choice.param, tried) == (5, 6)
    choice, tried = walk(2, 1, 1, 1, 1.2, 1.2, 0.9)
    assert (choice.param, tried) == (6, 7)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [((2, 1.04, 1.0, 1.1), 2), ((1.0, 1.01, 1.02), 0), ((1.2, 1.1, 1.0, 0.9, 0.8), 4)],
)
def test_the_least_mean_loss_is_taken_however_close_the_others_are(losses, chosen):
    choice, _ = walk(*losses, error=0.1)
    assert choice.param == chosen
    assert choice.decision_values == pytest.approx(
        step(chosen, losses[chosen], 0.1).decision_values
    )
    assert choice.loss == pytest.approx(losses[chosen])


def test_with_slack_the_strongest_that_is_near_the_least_is_taken():
    assert walk(2, 1.04, 1.0, 1.1)[0].param == 2
    steps = (step(i, loss) for i, loss in enumerate((2, 1.2, 1.04, 1.0, 1.1)))
    assert select_param(steps, Y, "log", loss_tol=0.05).param == 2
    steps = (step(i, loss) for i, loss in enumerate((1.3, 1.26, 1.22, 1.0)))
    assert (
        select_param(steps, Y, "log", loss_tol=0.05).param == 3
    )  # near one that is no longer the least


def test_of_equal_losses_the_strongest_regularisation_is_taken():
    assert walk(2, 1, 1, 1.5)[0].param == 1


def test_what_did_not_converge_is_never_chosen_and_said():
    choice, _ = walk(2, step(1, 0.1, converged=False), 1, step(3, 0.2, converged=False), 1.5)
    assert choice.param == 2
    assert choice.unconverged == [1, 3]
    assert [setting for setting, _ in choice.path] == [0, 2, 4]


def test_where_nothing_converges_it_is_the_strongest():
    choice, tried = walk(*(step(i, 3 - i, converged=False) for i in range(3)))
    assert (choice.param, choice.unconverged, choice.path, tried) == (0, [0, 1, 2], [], 3)
    with pytest.raises(ValueError, match="a path needs a step"):
        walk()


def test_the_end_of_the_grid_is_told_where_the_loss_still_falls_there():
    assert walk(3, 2, 1)[0].is_at_grid_edge
    assert not walk(3, 1, 2)[0].is_at_grid_edge
    assert not walk(1)[0].is_at_grid_edge


def test_losses_are_what_the_heads_minimise():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    signs = np.where(y[:, None] == np.arange(4), 1, -1)
    proba = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for loss, mean in {
        "log": log_loss(y, proba, labels=range(4)),
        "error": zero_one_loss(y, scores.argmax(axis=1)),
        "calibrated": log_loss(y, softmax(scores / fit_temperature(scores, y), axis=1)),
        "hinge": (np.maximum(0, 1 - signs * scores) ** 2).sum(axis=1).mean(),
    }.items():
        ((_, found),) = select_param([PathPoint(None, scores, True)], y, loss).path
        assert found == pytest.approx(mean), loss


@pytest.mark.parametrize(("loss", "most"), [("log", 100), ("error", 1), ("hinge", 12)])
def test_a_class_that_the_head_never_saw_costs_the_most(loss, most):
    scores = np.array([[0, -1e30, 5.0], [1, 1, 1]])  # sure of what it is not; all alike
    y = np.array([1, -1])
    ((_, found),) = select_param([PathPoint(None, scores[1:], True)], y[1:], loss).path
    assert found == most
    ((_, found),) = select_param([PathPoint(None, scores[:1], True)], y[:1], loss).path
    assert found <= 100  # one image cannot decide alone


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ridge", lambda alpha: RidgeClassifier(alpha=alpha)),
        ("softmax", lambda C: LogisticRegression(C=C, tol=1e-6, max_iter=2000)),
    ],
)
def test_a_head_takes_what_scikit_learn_would_have_it_take(digits, name, kind):
    """The same rule by hand: scikit-learn's classifier, its folds, every setting of the grid."""
    X, y = digits[0][:300, ::2], digits[1][:300]
    held = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    means = []
    for setting in get_head_spec(name).grid:
        scores = np.empty((len(y), 10))
        for train, out in held:
            model = make_pipeline(StandardScaler(), kind(setting)).fit(X[train], y[train])
            scores[out] = model.decision_function(X[out])
        if name == "ridge":  # its scores are no logarithms: made into them as well as can be
            scores /= fit_temperature(scores, y)
        means.append(log_loss(y, softmax(scores, axis=1)))
    best = int(np.argmin(means))
    assert 0 < best < len(means) - 1
    assert HeadClassifier(name, seed=0).fit(X, y).setting_ == get_head_spec(name).grid[best]
