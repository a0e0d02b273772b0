"""Train one head on some rows: its setting by validation, then the head itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from sklearn.pipeline import Pipeline

from classify import delegated, kernels, minimised, neighbours, solved, vectors
from classify.choice import Choice, Judge, Step, choose
from classify.errors import CallError
from classify.features import Rows
from classify.heads import Builder, Head, Setting
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
    further : dict of str to float
        What was chosen beside the setting, by name: a kernel's ``gamma``.
    """

    scorer: Linear | Fitted
    setting: float | None
    choice: Choice | None
    held: np.ndarray
    probabilistic: bool
    notices: list[str] = field(default_factory=list)
    further: dict[str, float] = field(default_factory=dict)


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
        Delegated heads, kernels and neighbours do without.
    class_weights : float array of shape (K,), optional
        How much a row of each class counts.
    row_weights : float64 array of shape (n,), optional
        How often each row counts. Delegated heads and the statistics of kernels do without.
    nearest : callable
        Finds neighbours: `classify.neighbours.nearest`, or one that recalls what it found.
    judge : callable, optional
        What settings are chosen by instead of a head's own loss, from held-out scores and labels.
    slack : float
        As in `classify.choice.choose`.
    """

    rows: Rows
    y: np.ndarray
    n_classes: int
    folding: Folding
    spectra: Sequence[Spectrum] = ()
    class_weights: np.ndarray | None = None
    row_weights: np.ndarray | None = None
    nearest: Callable[[Rows, Folding], list[np.ndarray]] = neighbours.nearest
    judge: Judge | None = None
    slack: float = 0.0

    def choose(self, steps: Iterable[Step], y: np.ndarray, loss: str) -> Choice:
        """`classify.choice.choose`, by what this lesson is judged by."""
        return choose(steps, y, loss, self.judge, self.slack)

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

    @property
    def class_weight(self) -> dict[int, float] | None:
        """As scikit-learn has it."""
        each = self.class_weights
        return None if each is None else dict(enumerate(each.tolist()))

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
    if head.way == "kernel" and not _is_small(rows, len(rows), n_classes):
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
    """By all pairs of rows where they are few, else by similarities to some of them."""
    if _is_small(lesson.rows, len(lesson.folding.final), lesson.n_classes):
        return _vectors(head, lesson)
    return _landmarks(head, lesson)


def _is_small(rows: Rows, n: int, n_classes: int) -> bool:
    few = n <= vectors.MOST_ROWS and n_classes <= vectors.MOST_CLASSES
    return few and rows.nbytes <= IN_MEMORY


def _vectors(head: Head, lesson: Lesson) -> Trained:
    X, y, folding, final = lesson.rows.take(), lesson.y, lesson.folding, lesson.folding.final
    K, weight, whole = lesson.n_classes, lesson.class_weight, lesson.rows.rooted
    choice, setting, times = None, _middle(head.grid), _middle(head.widths)
    if folding.held_by:
        walks = vectors.held_out(
            head.grid, head.widths, X, y, folding.folds, K, weight, whole=whole
        )
        choices = [lesson.choose(walk, y[folding.held], head.loss) for walk in walks]
        best = int(np.argmin([choice.loss for choice in choices]))
        choice, times = choices[best], head.widths[best]
        setting = choice.setting
    scorer, gamma, fine = vectors.fit(setting, times, X[final], y[final], K, weight, whole=whole)
    notices = [] if fine else [_unconverged(head, setting)]
    further = {"gamma": gamma}
    return Trained(scorer, setting, choice, folding.held, False, notices, further)


def _landmarks(head: Head, lesson: Lesson) -> Trained:
    """The width is chosen on the first fold alone: to map rows takes most of the time."""
    folding, y, K = lesson.folding, lesson.y, lesson.n_classes
    head, times = replace(head, loss="hinge"), _middle(head.widths)
    if folding.held_by:
        (fold, *_), means = folding.folds, []
        for width in head.widths:
            _, problem = _mapped(lesson, *fold, width)
            steps = minimised.held_out(head.loss, head.grid, [problem], y, K)
            means.append(lesson.choose(steps, y[fold[1]], head.loss).loss)
        times = head.widths[int(np.argmin(means))]
    problems = [_mapped(lesson, *fold, times)[1] for fold in folding.folds]
    kernel, final = _mapped(lesson, folding.final, _NONE, times)
    trained = _descend(head, lesson, problems, final)
    notice = (
        f"not all pairs of {len(folding.final):,} images of {K:,} classes are compared: those "
        f"with {kernels.LANDMARKS:,} of them take their place"
    )
    scorer = kernels.joined(kernel, cast(Linear, trained.scorer), K)
    further = {"gamma": float(kernel[-1].gamma)}
    return replace(trained, scorer=scorer, notices=[notice, *trained.notices], further=further)


def _mapped(
    lesson: Lesson, train: np.ndarray, held: np.ndarray, times: float
) -> tuple[Pipeline, Problem]:
    """A kernel map of some rows, and what is to be minimised behind it."""
    kernel = kernels.rbf(lesson.rows.at(train), times)
    mapped: Rows = kernels.Mapped(lesson.rows.parts, lesson.rows.rows, lesson.rows.rooted, kernel)
    if (len(lesson.folding.held_by) + 1) * mapped.nbytes <= IN_MEMORY:
        mapped = Rows.of_array(mapped.take())
    # Similarities are left as they are: to scale them would change the kernel.
    spectrum = Spectrum.of_gram(*Moments.of(mapped.at(train)).without(), NONE)
    return kernel, Problem(mapped, lesson.masked(train), spectrum, mapped.at(held))


def _descend(head: Head, lesson: Lesson, problems: list[Problem], final: Problem) -> Trained:
    folding, notices = lesson.folding, []
    if lesson.rows.nbytes > IN_MEMORY and problems:
        notices.append(
            f"features of over {IN_MEMORY >> 30} GB are gone through in blocks, and "
            f"{head.parameter} is chosen on one fold of {len(folding.held):,} images"
        )
    choice, setting = None, _middle(head.grid)
    if problems:
        steps = minimised.held_out(head.loss, head.grid, problems, lesson.y, lesson.n_classes)
        choice = lesson.choose(steps, lesson.y[folding.held], head.loss)
        setting = choice.setting
    scorer, fine = minimised.minimise(
        head.loss, float(setting or 1), final, lesson.y, lesson.n_classes
    )
    if not fine:
        notices.append(_unconverged(head, setting))
    return Trained(scorer, setting, choice, folding.held, head.probabilistic, notices)


def _solved(head: Head, lesson: Lesson) -> Trained:
    folding, y = lesson.folding, lesson.y
    weights = lesson.measured_by(head)
    sums = solved.sums_of(lesson.rows, y, lesson.n_classes, folding, weights)
    choice, setting = None, _middle(head.grid)
    if folding.held_by:
        folds = list(zip(lesson.spectra[:-1], folding.held_by, strict=True))
        steps = solved.held_out(
            head.name, head.grid, lesson.rows, folds, sums, lesson.class_weights
        )
        choice = lesson.choose(steps, y[folding.held], head.loss)
        setting = choice.setting
    final = sums.without(0 if folding.spared else None)
    (scorer,) = solved.solve(head.name, lesson.spectra[-1], final, [setting], lesson.class_weights)
    return Trained(scorer, setting, choice, folding.held, head.probabilistic)


def _neighbours(head: Head, lesson: Lesson) -> Trained:
    _check_memory(head, lesson.rows)
    y, folding, final = lesson.y, lesson.folding, lesson.folding.final
    choice, setting = None, _middle(head.grid)
    if folding.held_by:
        near = lesson.nearest(lesson.rows, folding)
        steps = neighbours.held_out(head.grid, near, y, folding, lesson.n_classes)
        choice = lesson.choose(steps, y[folding.held], head.loss)
        setting = choice.setting
    scorer = neighbours.fit(
        setting, lesson.rows.at(final).take(), y[final], lesson.n_classes, whole=lesson.rows.rooted
    )
    return Trained(scorer, setting, choice, folding.held, head.probabilistic)


def _delegated(head: Head, lesson: Lesson) -> Trained:
    rows = lesson.rows
    _check_memory(head, rows)
    folding, final, weight = lesson.folding, lesson.folding.final, lesson.class_weight
    build, X, y, K = cast(Builder, head.build), rows.take(), lesson.y, lesson.n_classes
    choice = None
    if folding.held_by:
        step = delegated.held_out(build, X, y, folding.folds, K, weight, whole=rows.rooted)
        choice = lesson.choose([step], y[folding.held], head.loss)
    scorer, fine = delegated.fit(build, X[final], y[final], K, weight, whole=rows.rooted)
    notices = [] if fine else [_unconverged(head, None)]
    return Trained(scorer, None, choice, folding.held, scorer.probabilistic, notices)


def _check_memory(head: Head, rows: Rows) -> None:
    if rows.nbytes > IN_MEMORY:
        raise CallError(
            f"{head.name} needs a copy of all features, and {len(rows):,} rows of {rows.dim:,} are "
            f"over {IN_MEMORY >> 30} GB; use another head"
        )


WAYS = {
    "minimised": _minimised,
    "kernel": _kernel,
    "solved": _solved,
    "neighbours": _neighbours,
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


def _middle(values: Sequence[Any]) -> Any:
    """What is taken where nothing can be chosen by."""
    return values[len(values) // 2]


def _unconverged(head: Head, setting: Setting) -> str:
    return f"the final fit with {_called(head, setting)} did not converge"


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
