"""Losses and decisions of each kind, beside what they say in plain numpy."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, cohen_kappa_score, log_loss

from classify.errors import CallError, TooFewImagesError
from classify.evaluation.targets.metrics import choose_thresholds
from classify.finetuning.config import TrainConfig
from classify.finetuning.network import Classifier
from classify.finetuning.objectives.classes import ClassObjective
from classify.finetuning.objectives.grade import GradeObjective, compute_ordinal_loss
from classify.finetuning.objectives.multi import MultiObjective
from classify.finetuning.objectives.number import NumberObjective
from classify.training.targets.ordinal import grade_probabilities

RNG = np.random.default_rng(0)
NAMES = ("low", "middle", "high", "top")


def loss_of(objective, outputs, y, **options):
    loss = objective.make_loss(y, TrainConfig(**options), "cpu")
    return float(loss(torch.from_numpy(outputs), torch.tensor(y)))


def test_several_labels_cost_their_log_loss_where_they_are_known():
    outputs = RNG.normal(size=(40, 3)).astype(np.float32)
    y = (RNG.random((40, 3)) < 0.4).astype(float)
    y[RNG.random((40, 3)) < 0.3] = np.nan
    known = ~np.isnan(y)
    expected = log_loss(y[known], expit(outputs[known].astype(float)))
    objective = MultiObjective(tuple("abc"))
    assert loss_of(objective, outputs, y) == pytest.approx(expected, rel=1e-5)
    found, metric = objective.measure(outputs, y)
    assert found == pytest.approx(expected, rel=1e-5)
    precisions = [
        average_precision_score(y[known[:, k], k], outputs[known[:, k], k]) for k in range(3)
    ]
    assert metric == pytest.approx(np.mean(precisions))
    # What is unknown pulls nowhere; nor does a batch of which nothing is known.
    tensor = torch.from_numpy(outputs).requires_grad_()
    objective.make_loss(y, TrainConfig(), "cpu")(tensor, torch.tensor(y)).backward()
    assert ((tensor.grad.numpy() == 0) == ~known).all()
    assert loss_of(objective, outputs, np.full((40, 3), np.nan)) == 0


def test_mixed_labels_are_known_where_both_were():
    mixup = MultiObjective(("a", "b")).make_mixup(0.4)
    y = torch.tensor([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    _, mixed = mixup(torch.rand(3, 1, 1, 5), y)
    assert mixed[:, 1].isnan().tolist() == [False, True, True]
    assert ((mixed[:, 0] >= 0) & (mixed[:, 0] <= 1)).all()
    assert MultiObjective(("a",)).make_mixup(0.0) is None


def test_a_number_is_learnt_in_standard_deviations():
    y = 1e6 + 50 * RNG.normal(size=(30, 1))
    objective = NumberObjective(("age",)).learn_scale(y)
    z = (y - y.mean()) / y.std()
    outputs = (z + RNG.normal(size=z.shape) * 1.5).astype(np.float32)
    error = np.abs(outputs - z)
    expected = np.where(error <= 1, error**2 / 2, error - 0.5).mean()
    assert loss_of(objective, outputs, y) == pytest.approx(expected, rel=1e-4)
    assert objective.measure(outputs, y)[1] == pytest.approx(error.mean() * y.std(), rel=1e-4)
    head = make_head(objective, Classifier(4, 1, "linear"), {})
    X = RNG.normal(size=(5, 4)).astype(np.float32)
    with torch.no_grad():
        plain = torch.nn.functional.linear(
            torch.from_numpy(X), torch.from_numpy(head.scorer.coef).float()
        )
    assert head.outputs(X)[:, 0] == pytest.approx(
        plain[:, 0].numpy() + head.scorer.intercept[0], abs=0.1
    )


def make_head(objective, classifier, decided):
    from classify.heads.source import FeatureSource, HeadLayer
    from featurize.images.preprocess import Preprocess

    recipe = {"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact"}
    preprocess = Preprocess.from_dict(recipe | {"mean": [0.5] * 3, "std": [0.25] * 3})
    layers = (HeadLayer("l", "l", "avg", "<f4", 4, "f" * 64),)
    source = FeatureSource("b", "w", "0" * 64, preprocess, "float32", layers)
    return objective.make_head(classifier, source, np.zeros(0, np.uint64), decided)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_head_says_what_the_network_says(kind, temperature):
    """Of each kind: the last layer is rescaled, and nothing is lost."""
    X = RNG.normal(size=(50, 4)).astype(np.float32)
    for objective, n_cutpoints in ((GradeObjective(NAMES), 3), (MultiObjective(NAMES), 0)):
        torch.manual_seed(3)
        classifier = Classifier(4, objective.n_outputs, kind, n_cutpoints).eval()
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.7)
            outputs = classifier(torch.from_numpy(X)).numpy()
        calibration = np.stack([np.full(4, 1 / temperature), np.zeros(4)])
        decided = {"temperature": temperature}
        if not n_cutpoints:
            decided = {"calibration": calibration, "thresholds": np.full(4, 0.5)}
        head = make_head(objective, classifier, decided)
        assert head.head == ("mlp" if kind == "mlp" else objective.probe)
        values = head.values_of(head.outputs(X))
        assert values == pytest.approx(objective.values_of(outputs, decided), abs=1e-5)
        if n_cutpoints:
            above = expit(outputs.astype(float) / temperature)
            proba = -np.diff(np.c_[np.ones(50), above, np.zeros(50)], axis=1)
            assert head.predict_proba(X) == pytest.approx(proba, abs=1e-5)
            assert len(np.unique(values)) > 2


def test_grades_cost_their_log_probability_to_the_last_digit():
    cutpoints = np.array([-30.0, 0.0, 1e-3])
    rng = np.random.default_rng(1)
    scores, grades = rng.normal(size=60) * 4, rng.integers(0, 4, 60)
    scores[:4] = (-80, 80, 80, -80)
    grades[:4] = (3, 0, 1, 2)
    log_odds = torch.from_numpy(scores[:, None] - cutpoints).requires_grad_()
    loss = compute_ordinal_loss(log_odds, torch.from_numpy(grades))
    loss.backward()
    assert torch.isfinite(log_odds.grad).all()
    own = grade_probabilities(scores, cutpoints)[np.arange(60), grades]
    usual = own > 1e-9  # of others a difference of probabilities has no digits left
    plain = compute_ordinal_loss(log_odds.detach()[usual], torch.from_numpy(grades[usual]))
    assert float(plain) == pytest.approx(-np.log(own[usual]).mean(), rel=1e-6)
    assert usual.sum() > 25
    # Gradients in float32 are those of float64, but for rounding.
    single = torch.from_numpy((scores[:, None] - cutpoints).astype(np.float32)).requires_grad_()
    compute_ordinal_loss(single, torch.from_numpy(grades)).backward()
    # A gap of 1e-3 between scores of 80 has two digits left.
    assert torch.allclose(single.grad.double(), log_odds.grad, rtol=0.02, atol=1e-4)


def test_grades_are_measured_by_kappa():
    objective = GradeObjective(NAMES)
    y = RNG.integers(0, 4, (50, 1)).astype(float)
    outputs = (y + RNG.normal(size=y.shape) - np.array([0.5, 1.5, 2.5])).astype(np.float32)
    found = (outputs > 0).sum(axis=1)
    expected = cohen_kappa_score(y[:, 0], found, weights="quadratic")
    assert objective.measure(outputs, y)[1] == pytest.approx(expected)


def test_cutpoints_stay_in_order_whatever_is_learnt():
    classifier = Classifier(4, 1, "linear", 5)
    classifier.init_cutpoints(np.array([-2.0, -1.0, -1.0, 0.5, 3.0]))
    found = classifier.compute_cutpoints().detach().numpy()
    assert found == pytest.approx([-2, -1, -1, 0.5, 3], abs=1e-4)
    with torch.no_grad():
        classifier.gaps.add_(torch.randn(5) * 5)
    assert (np.diff(classifier.compute_cutpoints().detach().numpy()) >= 0).all()
    one = Classifier(4, 1, "linear", 1)
    one.init_cutpoints(np.array([0.7]))
    assert one.compute_cutpoints().tolist() == pytest.approx([0.7])
    with pytest.raises(CallError, match="no cutpoints"):
        Classifier(4, 1, "linear").compute_cutpoints()


def test_at_random_outputs_begin_with_the_frequencies():
    y = RNG.integers(0, 4, (400, 1)).astype(float)
    y[:300] = 1
    objective, classifier = GradeObjective(NAMES), Classifier(4, 1, "linear", 3)
    objective.init_at_random(classifier, y)
    below = expit(classifier.compute_cutpoints().detach().numpy())
    shares = [(y <= k).mean() for k in range(3)]
    assert below == pytest.approx(shares, abs=0.02)
    labels = (RNG.random((400, 2)) < (0.1, 0.9)).astype(float)
    several, classifier = MultiObjective(("a", "b")), Classifier(4, 2, "linear")
    several.init_at_random(classifier, labels)
    assert expit(classifier.out.bias.detach().numpy()) == pytest.approx(
        labels.mean(axis=0), abs=0.01
    )


def test_probabilities_are_softened_where_they_are_too_sure():
    y = (RNG.random((3000, 2)) < 0.5).astype(float)
    log_odds = np.where(y == 1, 1, -1) + RNG.normal(size=y.shape)
    # Log odds of unit normals around 1 and -1 are twice the value; six times is thrice too sure.
    decided = MultiObjective(("a", "b")).decide(
        (6 * log_odds).astype(np.float32), y, np.arange(3000)
    )
    assert 1 / decided["calibration"][0] == pytest.approx(3, rel=0.1)
    grades = GradeObjective(("a", "b", "c"))
    score, cutpoints = RNG.normal(size=4000) * 2, np.array([-1.0, 1.0])
    position = (score[:, None] + RNG.logistic(size=(4000, 1)) > cutpoints).sum(axis=1)
    outputs = (score[:, None] - cutpoints).astype(np.float32)
    truth = position.astype(float)[:, None]
    assert grades.decide(3 * outputs, truth, None)["temperature"] == pytest.approx(3, rel=0.1)
    assert grades.decide(outputs / 3, truth, None)["temperature"] == 1  # never sharpened


def test_thresholds_of_rare_labels_are_those_of_all():
    y = (RNG.random((200, 3)) < (0.5, 0.4, 0.02)).astype(float)
    y[:2, 2] = 1
    outputs = (2 * y + RNG.normal(size=y.shape) - 1).astype(np.float32)
    decided = MultiObjective(tuple("abc")).decide(outputs, y, np.arange(200))
    proba = expit(outputs * decided["calibration"][0])
    own, shared = (
        choose_thresholds(y, proba),
        choose_thresholds(y.reshape(-1, 1), proba.reshape(-1, 1)),
    )
    assert decided["thresholds"][:2] == pytest.approx(own[:2])
    assert decided["thresholds"][2] == pytest.approx(shared[0])


def test_intervals_take_enough_images():
    y = RNG.normal(size=(100, 1))
    objective = NumberObjective(("x",), 0.0, 1.0)
    outputs = (y + RNG.normal(size=y.shape)).astype(np.float32)
    decided = objective.decide(outputs, y, np.arange(100))
    assert (np.abs(outputs - y) <= decided["margin"]).mean() == pytest.approx(0.91)
    assert objective.decide(outputs[:5], y[:5], np.arange(5)) == {}
    assert objective.decide(outputs, y, np.arange(100) % 5) == {}  # five units are no more


def test_options_of_other_kinds():
    said = []
    for objective in (NumberObjective(("x",)), GradeObjective(NAMES), MultiObjective(NAMES)):
        with pytest.raises(CallError, match=f"of the kind {objective.kind} have none: leave --cl"):
            objective.check_config(TrainConfig(class_weight="balanced"), said.append)
    mixed = TrainConfig(mixup=0.2)
    assert MultiObjective(NAMES).check_config(mixed, said.append).mixup == 0.2
    assert ClassObjective(NAMES).check_config(mixed, said.append) is mixed
    assert not said
    assert NumberObjective(("x",)).check_config(mixed, said.append).mixup == 0
    assert said == [
        "mixup is left out: what lies between two images is not known to have the number between "
        "theirs"
    ]


def test_what_nothing_can_be_learnt_from():
    with pytest.raises(TooFewImagesError, match=r"every training image .* has the number 3"):
        NumberObjective(("x",)).split_validation(np.full((40, 1), 3.0), None, None, 0)
    with pytest.raises(TooFewImagesError, match=r"every training image .* has the grade middle"):
        GradeObjective(NAMES).split_validation(np.ones((40, 1)), None, None, 0)
    with pytest.raises(TooFewImagesError, match="2 training images with it and 2 without"):
        MultiObjective(("a",)).split_validation(np.ones((40, 1)), None, None, 0)
    y = RNG.normal(size=(40, 1))
    with pytest.raises(TooFewImagesError, match="mark some, not all, as val"):
        NumberObjective(("x",)).split_validation(y, None, np.ones(40, bool), 0)
    with pytest.raises(CallError, match="39 groups do not go with 40 labels"):
        NumberObjective(("x",)).split_validation(y, np.arange(39), None, 0)


def test_a_tenth_is_validated_of_every_label_and_group():
    y = (RNG.random((600, 3)) < (0.5, 0.1, 0.05)).astype(float)
    groups = np.arange(600) // 3
    training, held = MultiObjective(tuple("abc")).split_validation(y, groups, None, 0)
    assert (training ^ held).all()
    assert not set(groups[training]) & set(groups[held])
    assert y[held].mean(axis=0) == pytest.approx(y.mean(axis=0), rel=0.35)
    assert held.mean() == pytest.approx(0.1, abs=0.02)
