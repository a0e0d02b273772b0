"""Predictions: class numbers and their columns."""

import numpy as np

from classify.evaluation.predictions import renumber


def test_renumber_gives_positions_and_minus_one_for_what_is_unknown():
    known = np.array([2, 5, 6])
    assert renumber(np.array([5, 2, 0, 6, -1, 9]), known).tolist() == [1, 0, -1, 2, -1, -1]
    assert renumber(np.array([], int), known).tolist() == []
