"""Checks of the data, from the cache alone: what to look at before believing a score."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from classify.labels import TEST, TRAIN, VAL
from classify.outcomes import Outcomes
from classify.splits import count_units
from classify.suspects import Suspect, suspects
from classify.tasks import Task
from classify.twins import Twin, looked_at, twins
from featurize.cache import FeatureCache

FEW = 10  # training images below which a class is listed
SHOWN = 3  # examples in a sentence

__all__ = ["Checks", "SmallClass", "Suspect", "Twin", "check", "small_classes", "suspects", "twins"]


@dataclass(frozen=True)
class SmallClass:
    """A class with too few images.

    Attributes
    ----------
    label : str
    n_train : int
        Training images.
    problem : str
        What follows from it.
    """

    label: str
    n_train: int
    problem: str


def small_classes(task: Task) -> list[SmallClass]:
    """List classes with too few training images to be learnt or validated, the smallest first.

    Those are: without training images; without images in a validation split that there is, or,
    without such a split, with training images of one group only (one image, where there are no
    groups), which folds cannot part; with fewer than 10 training images.
    """
    train, val = task.split == TRAIN, task.split == VAL
    count = np.bincount(task.y[train], minlength=len(task.classes))
    apart = np.zeros_like(count)
    found = count_units(task.y[train], task.units[train])
    apart[: len(found)] = found
    checked = np.bincount(task.y[val], minlength=len(task.classes)) if val.any() else apart - 1

    def problem(k: int) -> str | None:
        if not count[k]:
            return "no training image: always counted as wrong"
        if checked[k] <= 0 and val.any():
            return "no validation image: the setting is chosen without it"
        if checked[k] <= 0:
            what = "image" if task.groups is None else "group"
            return f"training images of one {what} only: the setting is chosen without it"
        return f"fewer than {FEW} training images" if count[k] < FEW else None

    order = np.argsort(count, kind="stable")
    told = [(task.classes[k], int(count[k]), problem(int(k))) for k in order]
    return [SmallClass(label, n, what) for label, n, what in told if what is not None]


@dataclass(frozen=True)
class Checks:
    """What was found.

    Attributes
    ----------
    twins : list of Twin
        Images on both sides of the split.
    suspects : list of Suspect
        Labels that look wrong.
    small : list of SmallClass
    n_test, n_judged : int
        Images in the test, and images whose label was held against a head.
    paths : dict of int to str
        Of the rows that the lists name.
    notices : tuple of str
        What could not be checked.
    """

    twins: list[Twin]
    suspects: list[Suspect]
    small: list[SmallClass]
    n_test: int
    n_judged: int
    paths: dict[int, str]
    notices: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as dicts and lists, with paths for rows."""
        return {
            "twins": [
                {"train": self.paths[t.row_train], "test": self.paths[t.row_test]}
                | {k: v for k, v in asdict(t).items() if not k.startswith("row_")}
                for t in self.twins
            ],
            "suspects": [
                {"path": self.paths[s.row]} | {k: v for k, v in asdict(s).items() if k != "row"}
                for s in self.suspects
            ],
            "small_classes": [asdict(small) for small in self.small],
            "notices": list(self.notices),
        }

    def lines(self) -> list[str]:
        """A sentence for each kind of find, with examples; none where nothing was found."""
        return [*self._of_twins(), *self._of_suspects(), *self._of_small()]

    def _of_twins(self) -> Iterator[str]:
        for same in (True, False):
            some = [t for t in self.twins if t.same_bytes == same]
            if not some:
                continue
            how = "are, byte for byte," if same else "are nearly the same as images"
            pairs = _listed([f"{self._name(t.row_test)} = {self._name(t.row_train)}" for t in some])
            other = sum(not t.same_label for t in some)
            labels = f", {other:,} under another label" if other else ""
            yield (
                f"{len(some):,} of {self.n_test:,} test images {how} among those learnt from or "
                f"chosen by{labels}, which makes the score too good (put such images on one side "
                f"of the split, or into one group): {pairs}"
            )

    def _of_suspects(self) -> Iterator[str]:
        if self.suspects:
            told = [
                f"{self._name(s.row)} ({s.given!r}, looks like {s.proposed!r})"
                for s in self.suspects
            ]
            yield (
                f"{len(told):,} of {self.n_judged:,} labels are worth a look: a head that did not "
                f"learn them finds another far likelier. The surest first: {_listed(told)}"
            )

    def _of_small(self) -> Iterator[str]:
        problems = dict.fromkeys(small.problem for small in self.small)
        for problem in problems:
            some = [s for s in self.small if s.problem == problem]
            told = [f"{s.label!r} ({s.n_train:,})" for s in some]
            what = "class has" if len(some) == 1 else "classes have"
            yield f"{len(some):,} {what} {problem}: {_listed(told)}"

    def _name(self, row: int) -> str:
        return repr(self.paths[row])


def check(cache: FeatureCache, task: Task, *answers: Outcomes | None) -> Checks:
    """Check a task's data: twins across the split, labels that look wrong, small classes.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    *answers : Outcomes, or None
        A good head's answers on images that were held out, for the labels: those of the folds, and
        those of the test, whose labels can be as wrong.

    Raises
    ------
    RowNotReady
    """
    pairs = twins(cache, task)
    given = [part for part in answers if part is not None and len(part)]
    outcomes = Outcomes.joined(given) if given else None
    doubted = [] if outcomes is None else suspects(task, outcomes)
    n_test, n_judged = int((task.split == TEST).sum()), 0
    notices = []
    n_looked = looked_at(cache, task)
    if n_looked < n_test:
        notices.append(
            f"the bytes of all {n_test:,} test images, but the features of {n_looked:,} of them "
            "only, were compared with those of the others: more would take too long"
        )
    if outcomes is None:
        notices.append("labels were not checked: no images were held out while learning")
    elif np.isnan(outcomes.calibrated_loss).all():
        notices.append("labels were not checked: the head has no calibrated probabilities")
    else:
        n_judged = int((~np.isnan(outcomes.calibrated_loss)).sum())
    rows = {row for t in pairs for row in (t.row_train, t.row_test)} | {s.row for s in doubted}
    paths = {row: cache.paths[row] for row in sorted(rows)}
    return Checks(pairs, doubted, small_classes(task), n_test, n_judged, paths, tuple(notices))


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")
