"""Train one head on some rows: its setting by validation, then the head itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from classify import delegated, kernels, minimised, solved
from classify.choice import Choice, choose
from classify.errors import CallError
from classify.features import Rows
from classify.heads import Head
from classify.minimised import Problem
from classify.moments import Moments
from classify.scorers import Fitted, Linear
from classify.spectrum import NONE, Spectrum
from classify.splits import Folding

IN_MEMORY = 1 << 30
"""Bytes of float32 features up to which a copy of them may be made."""
MAX_SCORES = 1_000_000  # held-out scores; beyond, a sample of the held-out images is scored,
FEWEST_HELD = 20_000  # though of no fewer images: a worker holds them for several settings at once,
MOST_SCORES = 100_000_000  # unless these would be more, 400 MB


@dataclass(frozen=True, eq=False)
class Trained:
    """A head, and what was learnt on the way.

    Attributes
    ----------
    scorer : Linear or Fitted
    setting : float, or None
        The chosen one.
    choice : Choice, or None
        None where nothing could be validated.
    held : int array of shape (m,)
        Positions of the validated images; `choice.scores` has a row for each.
    probabilistic : bool
    notices : list of str
    """

    scorer: Linear | Fitted
    setting: float | None
    choice: Choice | None
    held: np.ndarray
    probabilistic: bool
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a head learns from.

    Attributes
    ----------
    rows : Rows
        n of them.
    y : int array of shape (n,)
        Positions below `n_classes`; -1 for a class that the final rows lack.
    n_classes : int
    folding : Folding
    spectra : sequence of Spectrum
        One for each fold and one for the final rows, as `classify.statistics.spectra` gives them.
        Delegated heads and kernels do without.
    class_weights : float array of shape (K,), optional
        How much a row of each class counts.
    row_weights : float64 array of shape (n,), optional
        How often each row counts. Delegated heads and the statistics of kernels do without.
    """

    rows: Rows
    y: np.ndarray
    n_classes: int
    folding: Folding
    spectra: Sequence[Spectrum] = ()
    class_weights: np.ndarray | None = None
    row_weights: np.ndarray | None = None

    @property
    def weights(self) -> np.ndarray:
        """The weight of each row, by its class too: float64 (n,)."""
        known = self.y >= 0
        each = known * (1.0 if self.row_weights is None else self.row_weights)
        if self.class_weights is not None:
            each = each * np.where(known, self.class_weights[self.y], 0.0)
        return each

    def measured_by(self, head: Head) -> np.ndarray | None:
        """What a head's spectra and class sums are weighted by: float64 (n,), or None.

        The weights of classes have a part in ridge's alone: they shift the bias of softmax and
        hinge, and the priors of LDA.
        """
        weighs = head.name == "ridge" and self.class_weights is not None
        return self.weights if weighs else self.row_weights

    def masked(self, positions: np.ndarray) -> np.ndarray:
        """The weights, zero but for some rows."""
        chosen = np.zeros(len(self.y))
        chosen[positions] = self.weights[positions]
        return chosen


def affordable(head: Head, rows: Rows, folding: Folding, n_classes: int) -> Folding:
    """The folds that a head goes through: the first alone where the rows are read in blocks.

    Heads in closed form use all of them: theirs cost no pass over the rows.

    Raises
    ------
    CallError
        If a head cannot have so many classes and columns; better now than after the spectra.
    """
    if head.way == "minimised":
        minimised.check_size(n_classes, rows.dim, min(len(rows), rows.dim))
    if head.way == "kernel":
        minimised.check_size(n_classes, kernels.LANDMARKS, kernels.LANDMARKS)
    if head.way in ("minimised", "kernel") and rows.nbytes > IN_MEMORY and folding.held_by:
        return folding.only(0)
    return folding


def train(head: Head, lesson: Lesson) -> Trained:
    """Choose a setting by held-out loss, then train on all final rows with it.

    Raises
    ------
    CallError
        If the head cannot be trained on so many rows.
    """
    lesson, notices = _sampled(lesson)
    if lesson.class_weights is not None and not head.weighted:
        notices.append("it takes no class weights, so that option changes nothing")
    trained = WAYS[head.way](head, lesson)
    trained.notices[:0] = notices
    trained.notices.extend(_remarks(head, trained))
    return trained


def _minimised(head: Head, lesson: Lesson) -> Trained:
    rows = lesson.rows
    if rows.nbytes <= IN_MEMORY:
        rows = Rows.of_array(rows.take())  # gone through often: gathered once
    problems = [
        Problem(rows, lesson.masked(train), lesson.spectra[i], rows.at(held))
        for i, (train, held) in enumerate(lesson.folding.folds)
    ]
    final = Problem(rows, lesson.masked(lesson.folding.final), lesson.spectra[-1], rows.at(_NONE))
    return _descend(head, lesson, problems, final)


def _kernel(head: Head, lesson: Lesson) -> Trained:
    problems, folding = [], lesson.folding
    for train, held in [*folding.folds, (folding.final, _NONE)]:
        kernel = kernels.rbf(lesson.rows.at(train))
        mapped: Rows = kernels.Mapped(
            lesson.rows.parts, lesson.rows.rows, lesson.rows.rooted, kernel
        )
        if (len(folding.held_by) + 1) * mapped.nbytes <= IN_MEMORY:
            mapped = Rows.of_array(mapped.take())
        # Similarities are left as they are: to scale them would change the kernel.
        moments = Moments.of(mapped.at(train))
        spectrum = Spectrum.of_gram(*moments.without(), NONE)
        problems.append(Problem(mapped, lesson.masked(train), spectrum, mapped.at(held)))
    trained = _descend(head, lesson, problems[:-1], problems[-1])
    scorer = kernels.joined(kernel, cast(Linear, trained.scorer), lesson.n_classes)
    return Trained(scorer, trained.setting, trained.choice, trained.held, False, trained.notices)


def _descend(head: Head, lesson: Lesson, problems: list[Problem], final: Problem) -> Trained:
    folding, notices = lesson.folding, []
    if lesson.rows.nbytes > IN_MEMORY and problems:
        notices.append(
            f"features of over {IN_MEMORY >> 30} GB are gone through in blocks, and "
            f"{head.parameter} is chosen on one fold of {len(folding.held):,} images"
        )
    choice, setting = None, head.grid[len(head.grid) // 2]
    if problems:
        steps = minimised.held_out(head.loss, head.grid, problems, lesson.y, lesson.n_classes)
        choice = choose(steps, lesson.y[folding.held], head.loss)
        setting = choice.setting
    scorer, fine = minimised.minimise(
        head.loss, float(setting or 1), final, lesson.y, lesson.n_classes
    )
    if not fine:
        notices.append(f"the final fit with {_called(head, setting)} did not converge")
    return Trained(scorer, setting, choice, folding.held, head.probabilistic, notices)


def _solved(head: Head, lesson: Lesson) -> Trained:
    folding, y = lesson.folding, lesson.y
    weights = lesson.measured_by(head)
    sums = solved.sums_of(lesson.rows, y, lesson.n_classes, folding, weights)
    choice, setting = None, head.grid[len(head.grid) // 2]
    if folding.held_by:
        folds = list(zip(lesson.spectra[:-1], folding.held_by, strict=True))
        steps = solved.held_out(
            head.name, head.grid, lesson.rows, folds, sums, lesson.class_weights
        )
        choice = choose(steps, y[folding.held], head.loss)
        setting = choice.setting
    final = sums.without(0 if folding.spared else None)
    (scorer,) = solved.solve(head.name, lesson.spectra[-1], final, [setting], lesson.class_weights)
    return Trained(scorer, setting, choice, folding.held, head.probabilistic)


def _delegated(head: Head, lesson: Lesson) -> Trained:
    rows, folding = lesson.rows, lesson.folding
    weight: Any = None
    if lesson.class_weights is not None:
        weight = dict(enumerate(lesson.class_weights.tolist()))
    if rows.nbytes > IN_MEMORY or head.build is None:
        raise CallError(
            f"{head.name} needs a copy of all features, and {len(rows):,} rows of {rows.dim:,} are "
            f"over {IN_MEMORY >> 30} GB; use another head"
        )
    X, choice, setting = rows.take(), None, head.grid[len(head.grid) // 2]
    if folding.held_by:
        steps = delegated.held_out(
            head.build,
            head.grid,
            X,
            lesson.y,
            folding.folds,
            lesson.n_classes,
            weight,
            whole=rows.rooted,
        )
        choice = choose(steps, lesson.y[folding.held], head.loss)
        setting = choice.setting
    final = folding.final
    scorer, fine = delegated.fit(
        head.build,
        setting,
        X[final],
        lesson.y[final],
        lesson.n_classes,
        weight,
        whole=rows.rooted,
    )
    notices = [] if fine else [f"the final fit with {_called(head, setting)} did not converge"]
    return Trained(scorer, setting, choice, folding.held, scorer.probabilistic, notices)


WAYS = {
    "minimised": _minimised,
    "kernel": _kernel,
    "solved": _solved,
    "delegated": _delegated,
}
_NONE = np.zeros(0, np.intp)


def _sampled(lesson: Lesson) -> tuple[Lesson, list[str]]:
    """Fewer held-out images where their scores would not fit; training keeps them all."""
    folding = lesson.folding
    n_held = len(folding.held)
    most = max(MAX_SCORES // lesson.n_classes, min(FEWEST_HELD, MOST_SCORES // lesson.n_classes))
    if n_held <= most:
        return lesson, []
    rng, share = np.random.default_rng(0), most / n_held
    held_by = []
    for held in folding.held_by:
        some = rng.choice(len(held), max(1, int(share * len(held))), replace=False)
        held_by.append(held[np.sort(some)])
    fewer = replace(folding, held_by=held_by)
    notice = f"validated on {len(fewer.held):,} of {n_held:,} images"
    return replace(lesson, folding=fewer), [notice]


def _called(head: Head, setting: float | None) -> str:
    return "its defaults" if setting is None else f"{head.parameter} = {setting:g}"


def _remarks(head: Head, trained: Trained) -> list[str]:
    notices, choice, called = [], trained.choice, _called(head, trained.setting)
    if choice is None and len(head.grid) > 1:
        notices.append(f"nothing to validate with, so {called} was not chosen")
    if choice is not None and choice.unconverged:
        notices.append(f"{len(choice.unconverged)} settings left out: a fit did not converge")
    if choice is not None and choice.at_end:
        notices.append(f"{called} is the end of its grid")
    return notices
