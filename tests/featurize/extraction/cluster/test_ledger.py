"""The ledger's rules, without Ray."""

from featurize.extraction.cluster.ledger import Ledger, Measures, Problem

MEASURES = Measures(3, {"run": 1.0}, {}, "eager", "few images")


def test_a_block_that_is_finished_has_one_try():
    ledger = Ledger()
    assert ledger.begin(7) == (1, [])
    ledger.finish(7, MEASURES)
    assert ledger.begin(7) == (1, [])  # its rows were lost on their way
    assert ledger.take_news().n_losses == 0


def test_the_row_that_was_held_is_not_tried_again():
    ledger = Ledger()
    ledger.begin(7)
    ledger.begin(8)
    assert ledger.begin(7) == (2, [])  # lost on the first try: nobody knows where
    ledger.hold(7, 70)
    ledger.hold(7, 71)
    assert ledger.begin(7) == (3, [71])
    ledger.hold(7, 72)
    assert ledger.begin(7) == (4, [71, 72])
    ledger.finish(7, MEASURES)
    assert ledger.begin(8) == (2, [])  # other blocks are nobody's fault
    assert ledger.take_news().n_losses == 4


def test_news_are_told_once_and_the_first_problem_stays():
    ledger = Ledger()
    ledger.begin(1)
    ledger.finish(1, MEASURES)
    ledger.report_problem(Problem("CallError", "first"))
    ledger.report_problem(Problem("CallError", "second"))
    first, second = ledger.take_news(), ledger.take_news()
    assert (first.measures, second.measures) == ([MEASURES], [])
    assert first.problem == second.problem == Problem("CallError", "first")
