"""Check a task's data from its cache, and summarise the results in sentences."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from classify.checks.duplicates import DuplicatePair, count_compared, find_duplicates
from classify.checks.label_issues import LabelIssue, LabelReview, review_labels
from classify.data.tasks import Task
from classify.data.units import count_units
from classify.evaluation.predictions import HeldOutPredictions
from classify.labels.folders import TEST, TRAIN, VAL
from featurize.cache.reader import FeatureCache

MIN_TRAIN_IMAGES = 10  # training images below which a class is listed
MAX_EXAMPLES = 3  # examples in a sentence

__all__ = [
    "DataChecks",
    "DuplicatePair",
    "LabelIssue",
    "LabelReview",
    "SmallClass",
    "check_task",
    "find_duplicates",
    "find_small_classes",
    "review_labels",
]


@dataclass(frozen=True)
class SmallClass:
    """A class with too few images.

    Attributes
    ----------
    label : str
        Name of the class.
    n_train : int
        Number of training images.
    problem : str
        Description of the problem and its consequence.
    """

    label: str
    n_train: int
    problem: str


def find_small_classes(task: Task) -> list[SmallClass]:
    """Find classes with too few images to train on or to validate, the smallest first.

    These are classes without training images; without images in the validation split, or, if there
    is none, with training images of a single group (a single image, if there are no groups), which
    folds cannot separate; and classes with fewer than 10 training images.

    Parameters
    ----------
    task : Task
        Labels, classes, groups and split.

    Returns
    -------
    list of SmallClass
        By number of training images, ascending.
    """
    train, val = task.split == TRAIN, task.split == VAL
    count = np.bincount(task.y[train], minlength=len(task.classes))
    n_units = np.zeros_like(count)
    unit_counts = count_units(task.y[train], task.units[train])
    n_units[: len(unit_counts)] = unit_counts
    n_val = np.bincount(task.y[val], minlength=len(task.classes)) if val.any() else n_units - 1

    def describe_problem(k: int) -> str | None:
        if not count[k]:
            return "no training image: always counted as wrong"
        if n_val[k] <= 0 and val.any():
            return "no validation image: the setting is chosen without it"
        if n_val[k] <= 0:
            unit_name = "image" if task.groups is None else "group"
            return f"training images of one {unit_name} only: the setting is chosen without it"
        return (
            f"fewer than {MIN_TRAIN_IMAGES} training images"
            if count[k] < MIN_TRAIN_IMAGES
            else None
        )

    order = np.argsort(count, kind="stable")
    described = [(task.classes[k], int(count[k]), describe_problem(int(k))) for k in order]
    return [SmallClass(label, n, problem) for label, n, problem in described if problem is not None]


@dataclass(frozen=True)
class DataChecks:
    """The results of all checks of a task's data.

    Attributes
    ----------
    duplicates : list of DuplicatePair
        Test images that duplicate a training or validation image.
    labels : LabelReview
        Labels that look wrong, and how many of them are expected to be.
    small_classes : list of SmallClass
        Classes with too few images.
    n_test : int
        Number of test images.
    paths : dict of int to str
        Paths of the rows in these lists.
    notices : tuple of str
        Messages about what could not be checked.
    """

    duplicates: list[DuplicatePair]
    labels: LabelReview
    small_classes: list[SmallClass]
    n_test: int
    paths: dict[int, str]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results for JSON, with paths in place of rows.

        Returns
        -------
        dict
            Keys ``twins``, ``suspects``, ``small_classes``, ``notices`` and ``suspects_expected``:
            how many of the ``suspects`` are expected to be wrong, how many further labels were left
            out as no likelier wrong than the head's mistakes, how many were judged, and the
            estimated share of wrong labels.
        """
        return {
            "twins": [
                {"train": self.paths[pair.row_train], "test": self.paths[pair.row_test]}
                | {k: v for k, v in asdict(pair).items() if not k.startswith("row_")}
                for pair in self.duplicates
            ],
            "suspects": [
                {"path": self.paths[issue.row]}
                | {k: v for k, v in asdict(issue).items() if k != "row"}
                for issue in self.labels.issues
            ],
            "small_classes": [asdict(small) for small in self.small_classes],
            "notices": list(self.notices),
            "suspects_expected": {
                "wrong": round(self.labels.expected_wrong, 1),
                "left_out": self.labels.n_left_out,
                "judged": self.labels.n_judged,
                "noise_rate": self.labels.noise_rate,
            },
        }

    def summary_lines(self) -> list[str]:
        """Summarise each kind of problem in a sentence with examples.

        Returns
        -------
        list of str
            Empty if there are no problems.
        """
        return [*self._duplicate_lines(), *self._label_issue_lines(), *self._small_class_lines()]

    def _duplicate_lines(self) -> Iterator[str]:
        for same in (True, False):
            duplicates = [pair for pair in self.duplicates if pair.same_bytes == same]
            if not duplicates:
                continue
            description = "are, byte for byte," if same else "are nearly the same as images"
            examples = _format_examples(
                [
                    f"{self._quoted_path(pair.row_test)} = {self._quoted_path(pair.row_train)}"
                    for pair in duplicates
                ]
            )
            n_other_label = sum(not pair.same_label for pair in duplicates)
            label_note = f", {n_other_label:,} under another label" if n_other_label else ""
            yield (
                f"{len(duplicates):,} of {self.n_test:,} test images {description} among those "
                f"learnt from or chosen by{label_note}, which makes the score too good (put such "
                f"images on one side of the split, or into one group): {examples}"
            )

    def _label_issue_lines(self) -> Iterator[str]:
        if self.labels.issues:
            examples = [
                f"{self._quoted_path(issue.row)} ({issue.given!r}, looks like {issue.proposed!r})"
                for issue in self.labels.issues
            ]
            yield (
                f"{len(examples):,} of {self.labels.n_judged:,} labels are worth a look: a head "
                f"that did not learn them finds another far likelier. {self.labels.describe()} "
                f"The surest first: {_format_examples(examples)}"
            )

    def _small_class_lines(self) -> Iterator[str]:
        problems = dict.fromkeys(small.problem for small in self.small_classes)
        for problem in problems:
            classes = [
                small_class for small_class in self.small_classes if small_class.problem == problem
            ]
            examples = [
                f"{small_class.label!r} ({small_class.n_train:,})" for small_class in classes
            ]
            subject = "class has" if len(classes) == 1 else "classes have"
            yield f"{len(classes):,} {subject} {problem}: {_format_examples(examples)}"

    def _quoted_path(self, row: int) -> str:
        return repr(self.paths[row])


def check_task(
    cache: FeatureCache,
    task: Task,
    *predictions: HeldOutPredictions | None,
    layer: str | None = None,
) -> DataChecks:
    """Check a task's data: duplicates across the split, label issues, small classes.

    Parameters
    ----------
    cache : FeatureCache
        The cache of the task's images.
    task : Task
        Rows, labels and split.
    *predictions : HeldOutPredictions, or None
        Predictions of a good head for held-out images, to check labels with: those of the folds,
        and those of the test set, whose labels may be wrong as well.
    layer : str, optional
        The layer that duplicates are looked for in. The deepest if not given.

    Returns
    -------
    DataChecks
        The results of all checks.

    Raises
    ------
    RowNotReadyError
        If an image has no features.
    """
    duplicates = find_duplicates(cache, task, layers=layer)
    parts = [part for part in predictions if part is not None and len(part)]
    all_predictions = HeldOutPredictions.concatenate(parts) if parts else None
    labels = LabelReview([], 0, 0, 0.0)
    if all_predictions is not None:
        labels = review_labels(task, all_predictions)
    n_test = int((task.split == TEST).sum())
    notices = []
    n_compared = count_compared(cache, task, layers=layer)
    if n_compared < n_test:
        notices.append(
            f"the bytes of all {n_test:,} test images, but the features of {n_compared:,} of them "
            "only, were compared with those of the others: more would take too long"
        )
    if all_predictions is None:
        notices.append("labels were not checked: no images were held out while learning")
    elif np.isnan(all_predictions.calibrated_loss).all():
        notices.append("labels were not checked: the head has no calibrated probabilities")
    rows = {row for pair in duplicates for row in (pair.row_train, pair.row_test)} | {
        issue.row for issue in labels.issues
    }
    paths = dict(zip(sorted(rows), cache.paths_of(sorted(rows)), strict=True))
    return DataChecks(duplicates, labels, find_small_classes(task), n_test, paths, tuple(notices))


def _format_examples(texts: list[str]) -> str:
    return ", ".join(texts[:MAX_EXAMPLES]) + (", ..." if len(texts) > MAX_EXAMPLES else "")
