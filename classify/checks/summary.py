"""Checks of the data, from the cache alone: what to look at before believing a score."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from classify.checks.duplicates import DuplicatePair, count_compared, find_duplicates
from classify.checks.label_issues import LabelIssue, find_label_issues
from classify.data.folder_labels import TEST, TRAIN, VAL
from classify.data.tasks import Task
from classify.data.units import count_units
from classify.evaluation.predictions import HeldOutPredictions
from featurize.cache.reader import FeatureCache

MIN_TRAIN_IMAGES = 10  # training images below which a class is listed
MAX_EXAMPLES = 3  # examples in a sentence

__all__ = [
    "DataChecks",
    "DuplicatePair",
    "LabelIssue",
    "SmallClass",
    "check_task",
    "find_duplicates",
    "find_label_issues",
    "find_small_classes",
]


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


def find_small_classes(task: Task) -> list[SmallClass]:
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
        return (
            f"fewer than {MIN_TRAIN_IMAGES} training images"
            if count[k] < MIN_TRAIN_IMAGES
            else None
        )

    order = np.argsort(count, kind="stable")
    told = [(task.classes[k], int(count[k]), problem(int(k))) for k in order]
    return [SmallClass(label, n, what) for label, n, what in told if what is not None]


@dataclass(frozen=True)
class DataChecks:
    """What was found.

    Attributes
    ----------
    twins : list of DuplicatePair
        Images on both sides of the split.
    suspects : list of LabelIssue
        Labels that look wrong.
    small : list of SmallClass
    n_test, n_judged : int
        Images in the test, and images whose label was held against a head.
    paths : dict of int to str
        Of the rows that the lists name.
    notices : tuple of str
        What could not be checked.
    """

    duplicates: list[DuplicatePair]
    label_issues: list[LabelIssue]
    small_classes: list[SmallClass]
    n_test: int
    n_judged: int
    paths: dict[int, str]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts and lists, with paths for rows."""
        return {
            "twins": [
                {"train": self.paths[t.row_train], "test": self.paths[t.row_test]}
                | {k: v for k, v in asdict(t).items() if not k.startswith("row_")}
                for t in self.duplicates
            ],
            "suspects": [
                {"path": self.paths[s.row]} | {k: v for k, v in asdict(s).items() if k != "row"}
                for s in self.label_issues
            ],
            "small_classes": [asdict(small) for small in self.small_classes],
            "notices": list(self.notices),
        }

    def summary_lines(self) -> list[str]:
        """A sentence for each kind of find, with examples; none where nothing was found."""
        return [*self._duplicate_lines(), *self._label_issue_lines(), *self._small_class_lines()]

    def _duplicate_lines(self) -> Iterator[str]:
        for same in (True, False):
            some = [t for t in self.duplicates if t.same_bytes == same]
            if not some:
                continue
            how = "are, byte for byte," if same else "are nearly the same as images"
            pairs = _format_examples(
                [
                    f"{self._quoted_path(t.row_test)} = {self._quoted_path(t.row_train)}"
                    for t in some
                ]
            )
            other = sum(not t.same_label for t in some)
            labels = f", {other:,} under another label" if other else ""
            yield (
                f"{len(some):,} of {self.n_test:,} test images {how} among those learnt from or "
                f"chosen by{labels}, which makes the score too good (put such images on one side "
                f"of the split, or into one group): {pairs}"
            )

    def _label_issue_lines(self) -> Iterator[str]:
        if self.label_issues:
            told = [
                f"{self._quoted_path(s.row)} ({s.given!r}, looks like {s.proposed!r})"
                for s in self.label_issues
            ]
            yield (
                f"{len(told):,} of {self.n_judged:,} labels are worth a look: a head that did not "
                f"learn them finds another far likelier. The surest first: {_format_examples(told)}"
            )

    def _small_class_lines(self) -> Iterator[str]:
        problems = dict.fromkeys(small.problem for small in self.small_classes)
        for problem in problems:
            some = [s for s in self.small_classes if s.problem == problem]
            told = [f"{s.label!r} ({s.n_train:,})" for s in some]
            what = "class has" if len(some) == 1 else "classes have"
            yield f"{len(some):,} {what} {problem}: {_format_examples(told)}"

    def _quoted_path(self, row: int) -> str:
        return repr(self.paths[row])


def check_task(cache: FeatureCache, task: Task, *answers: HeldOutPredictions | None) -> DataChecks:
    """Check a task's data: twins across the split, labels that look wrong, small classes.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    *answers : HeldOutPredictions, or None
        A good head's answers on images that were held out, for the labels: those of the folds, and
        those of the test, whose labels can be as wrong.

    Raises
    ------
    RowNotReady
    """
    pairs = find_duplicates(cache, task)
    given = [part for part in answers if part is not None and len(part)]
    outcomes = HeldOutPredictions.concatenate(given) if given else None
    doubted = [] if outcomes is None else find_label_issues(task, outcomes)
    n_test, n_judged = int((task.split == TEST).sum()), 0
    notices = []
    n_looked = count_compared(cache, task)
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
    return DataChecks(
        pairs, doubted, find_small_classes(task), n_test, n_judged, paths, tuple(notices)
    )


def _format_examples(texts: list[str]) -> str:
    return ", ".join(texts[:MAX_EXAMPLES]) + (", ..." if len(texts) > MAX_EXAMPLES else "")
