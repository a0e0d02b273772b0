"""The heads by name, and their grids."""

import numpy as np
import pytest
from sklearn.linear_model import Perceptron

from classify import fit
from classify.cli import options
from classify.errors import UnknownHeadError
from classify.heads.registry import DEFAULT_HEADS, HEADS, get_head_spec


def test_heads_are_found_by_name_or_nearly():
    assert set(HEADS) == {
        "softmax", "softmax-lda", "linear-svm", "rbf-svm", "ridge", "lda", "ncm", "knn",
    }  # fmt: skip
    assert all(get_head_spec(name).name == name for name in HEADS)
    with pytest.raises(
        UnknownHeadError, match=r"no head 'sofmax', only softmax.*did you mean 'softmax'"
    ):
        get_head_spec("sofmax")
    with pytest.raises(UnknownHeadError, match=r"as package\.module:Class$"):
        get_head_spec("forest")


def test_the_command_line_names_them_all():
    assert options.HEAD_NAMES.split(", ")[:-1] == list(HEADS)
    assert options.DEFAULT_HEADS.split(",") == list(DEFAULT_HEADS)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"ncm", "softmax-lda"}))
def test_grids_go_from_strong_to_weak(name):
    grid = np.array(get_head_spec(name).grid)
    rising = name not in ("ridge", "lda", "knn")  # there more is stronger
    assert (np.diff(grid) > 0).all() if rising else (np.diff(grid) < 0).all()


def test_the_softmax_path_has_twenty_values():
    assert len(get_head_spec("softmax").grid) == 20


def test_any_scikit_learn_classifier_is_a_head(cache, table):
    head, record = fit(cache, table, "sklearn.linear_model:Perceptron")
    assert isinstance(head.scorer.estimator["classify"], Perceptron)
    assert record.head == "sklearn.linear_model:Perceptron"
    assert record.C is None
    assert record.accuracy > 0.6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sklearn.linear_model:Nothing", "no classifier 'sklearn.linear_model:Nothing'"),
        ("no.such.module:Thing", "No module named 'no'"),
        ("sklearn.linear_model:Ridge", "is not a scikit-learn classifier"),
        ("os:system", "is not a scikit-learn classifier"),
        (":", "no classifier ':'"),
    ],
)
def test_what_is_no_classifier_is_refused(name, message):
    with pytest.raises(UnknownHeadError, match=message):
        get_head_spec(name)
