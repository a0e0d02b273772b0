"""A time limit: what is left, what fits, and the errors that say so."""

import math
import time

import pytest

from classify.time_limit import EpochBudget, TimeLimit
from featurize.errors import RunInterruptedError
from featurize.progress import Step


def test_without_a_limit_everything_fits():
    limit = TimeLimit()
    assert not limit.is_set
    assert limit.left == math.inf
    assert limit.allows(1e9)
    limit.check("anything")
    reported: list[Step] = []
    guarded = limit.guard(reported.append)
    guarded(Step("heads", 1, 2))
    assert reported == [Step("heads", 1, 2)]


def test_what_does_not_fit_is_told_with_caution():
    limit = TimeLimit(10.0)
    assert limit.allows(8.0)
    assert not limit.allows(9.9)  # an estimate is rather too low
    assert TimeLimit.of(limit, 0.0) is limit
    assert TimeLimit.of(5.0, time.monotonic()).left == pytest.approx(5.0, abs=0.1)


def test_work_ends_where_it_reports_after_the_time_is_up():
    limit, reported = TimeLimit(0.05), []
    guarded = limit.guard(reported.append)
    guarded(Step("embedding", 1, 9))
    time.sleep(0.06)
    with pytest.raises(RunInterruptedError, match=r"is up at: embedding, 2 of 9.*longer --max-t"):
        guarded(Step("embedding", 2, 9))
    assert len(reported) == 2


def test_an_epoch_needs_room_for_all_that_follows_it():
    budget = EpochBudget(TimeLimit(100.0), after_epoch=10.0, after_training=30.0)
    assert budget.allows_steps(40, 1.0)  # 40 + 10 + 30 of 100
    assert not budget.allows_steps(60, 1.0)
    budget.longest_epoch = 50.0
    assert budget.allows_epoch()
    budget.longest_epoch = 65.0
    assert not budget.allows_epoch()
    assert "--max-time 3m" in str(budget.make_error(100, 1.0))
