"""The path from strong to weak regularisation: where it ends, and which setting is taken."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss, zero_one_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify import HeadClassifier
from classify.choice import Step, choose
from classify.heads import named

M = 16  # held-out images
Y = np.zeros(M, int)


def step(setting, mean, error=0.0, converged=True) -> Step:
    """A setting with that mean log loss and that standard error of it."""
    losses = mean + error * np.sqrt(M) * np.tile([-1, 1], M // 2)
    return Step(setting, np.stack([-np.log(np.expm1(losses)), np.zeros(M)], axis=1), converged)


def walk(*losses, **options):
    """What is chosen of settings 0, 1, 2, ... with these mean losses, and how many were tried."""
    tried = []

    def steps():
        for setting, loss in enumerate(losses):
            tried.append(setting)
            yield loss if isinstance(loss, Step) else step(setting, loss, **options)

    return choose(steps(), Y, "log"), len(tried)


def test_it_ends_when_the_loss_has_risen_twice_in_a_row_and_asks_for_no_more():
    choice, tried = walk(3, 2, 1, 1.5, 1.6, 0.1)
    assert (choice.setting, tried) == (2, 5)
    assert [setting for setting, _, _ in choice.path] == [0, 1, 2, 3, 4]
    assert [mean for _, mean, _ in choice.path] == pytest.approx([3, 2, 1, 1.5, 1.6])


def test_one_rise_or_standing_still_is_not_the_end():
    choice, tried = walk(2, 1, 1.2, 1.1, 1.3, 0.5)
    assert (choice.setting, tried) == (5, 6)
    choice, tried = walk(2, 1, 1, 1, 1.2, 1.2, 0.9)
    assert (choice.setting, tried) == (6, 7)


@pytest.mark.parametrize(
    ("losses", "error", "chosen"),
    [
        ((2, 1.04, 1.0, 1.1), 0.05, 1),  # within one standard error of the least: the stronger
        ((2, 1.04, 1.0, 1.1), 0.03, 2),
        ((1.06, 1.04, 1.0, 1.1), 0.07, 0),
        ((1.2, 1.1, 1.0, 0.9, 0.8), 0.11, 3),  # each near the one before: the least decides
        ((1.0, 1.01, 1.02), 0.2, 0),
    ],
)
def test_of_what_is_within_one_standard_error_the_strongest_is_taken(losses, error, chosen):
    choice, _ = walk(*losses, error=error)
    assert choice.setting == chosen
    assert choice.scores == pytest.approx(step(chosen, losses[chosen], error).scores)
    assert all(found == pytest.approx(error) for _, _, found in choice.path)


def test_the_standard_error_is_that_of_the_least_loss():
    choice, _ = walk(step(0, 1.05, 0.2), step(1, 1.0, 0.01))
    assert choice.setting == 1
    choice, _ = walk(step(0, 1.05, 0.01), step(1, 1.0, 0.2))
    assert choice.setting == 0


def test_what_did_not_converge_is_never_chosen_and_said():
    choice, _ = walk(2, step(1, 0.1, converged=False), 1, step(3, 0.2, converged=False), 1.5)
    assert choice.setting == 2
    assert choice.unconverged == [1, 3]
    assert [setting for setting, _, _ in choice.path] == [0, 2, 4]


def test_where_nothing_converges_it_is_the_strongest():
    choice, tried = walk(*(step(i, 3 - i, converged=False) for i in range(3)))
    assert (choice.setting, choice.unconverged, choice.path, tried) == (0, [0, 1, 2], [], 3)
    with pytest.raises(ValueError, match="a path needs a step"):
        walk()


def test_the_end_of_the_grid_is_told_where_the_loss_still_falls_there():
    assert walk(3, 2, 1)[0].at_end
    assert not walk(3, 1, 2)[0].at_end
    assert not walk(3, 1.01, 1, error=0.1)[0].at_end  # the last is least, but not taken
    assert not walk(1)[0].at_end


def test_losses_are_what_the_heads_minimise():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    signs = np.where(y[:, None] == np.arange(4), 1, -1)
    proba = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for loss, mean in {
        "log": log_loss(y, proba, labels=range(4)),
        "error": zero_one_loss(y, scores.argmax(axis=1)),
        "squared": ((scores - signs) ** 2).sum(axis=1).mean(),
        "hinge": (np.maximum(0, 1 - signs * scores) ** 2).sum(axis=1).mean(),
    }.items():
        ((_, found, error),) = choose([Step(None, scores, True)], y, loss).path
        assert found == pytest.approx(mean), loss
        assert 0 < error < found


@pytest.mark.parametrize(("loss", "most"), [("log", 100), ("error", 1), ("squared", 12)])
def test_a_class_that_the_head_never_saw_costs_the_most(loss, most):
    scores = np.array([[0, -1e30, 5.0], [1, 1, 1]])  # sure of what it is not; all alike
    y = np.array([1, -1])
    ((_, found, _),) = choose([Step(None, scores[1:], True)], y[1:], loss).path
    assert found == most
    ((_, found, _),) = choose([Step(None, scores[:1], True)], y[:1], loss).path
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
    signs = np.where(y[:, None] == np.arange(10), 1, -1)
    means, errors = [], []
    for setting in named(name).grid:
        losses = np.empty(len(y))
        for train, out in held:
            model = make_pipeline(StandardScaler(), kind(setting)).fit(X[train], y[train])
            if name == "ridge":
                scores = model.decision_function(X[out])
                losses[out] = ((scores - signs[out]) ** 2).sum(axis=1)
            else:
                losses[out] = -model.predict_log_proba(X[out])[np.arange(len(out)), y[out]]
        means.append(losses.mean())
        errors.append(losses.std() / np.sqrt(len(y)))
    best = int(np.argmin(means))
    (near, *_) = np.flatnonzero(np.array(means) <= means[best] + errors[best])
    assert near < best < len(means) - 1  # else this would not tell the rule from the least loss
    assert HeadClassifier(name, seed=0).fit(X, y).setting_ == named(name).grid[near]
