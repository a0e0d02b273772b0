"""`classify groups`: which images belong on one side of a split, and what that changes."""

import csv
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from classify.checks.groups import GroupRule, find_group_rules, merge_rules
from classify.data.features import CacheOrPath, open_cache
from classify.data.targets.spec import TaskSpec
from classify.errors import CallError, ClassifyError, LabelError, OutputError
from classify.experiments.fit import fit_classes
from classify.kinds import CLASS
from classify.labels.table import LabelsLike, LabelTable
from featurize.cache.format import MARKED
from featurize.cache.reader import FeatureCache
from featurize.files import atomic_write, check_target
from featurize.progress import Say, ignore

QUICK_HEAD = "lda"
MAX_HEADER_BYTES = 1 << 16
HEADERS = (["path", "label", "group"], ["path", "group"])


@dataclass(frozen=True, eq=False)
class GroupProposal:
    """Groups of images, the rules that found them, and accuracy with and without them.

    Attributes
    ----------
    paths : list of str
        Paths of the n images.
    labels : list of str, or None
        Their classes, where these are known.
    groups : list of str
        The group of each image; one that nothing links is in a group of its own.
    rules : list of GroupRule
        What each rule found, and whether it counts.
    n_groups, n_grouped : int
        Groups of two images or more, and the images in them.
    accuracy_before, accuracy_after : float, or None
        Test accuracy of a quick head on a split without the groups, and on one that keeps them
        whole. None without labels.
    accuracy_before_ci, accuracy_after_ci : (float, float), or None
        95 % intervals.
    notices : list of str
        Messages for the user.
    """

    paths: list[str]
    labels: list[str] | None
    groups: list[str]
    rules: list[GroupRule]
    n_groups: int
    n_grouped: int
    accuracy_before: float | None = None
    accuracy_before_ci: tuple[float, float] | None = None
    accuracy_after: float | None = None
    accuracy_after_ci: tuple[float, float] | None = None
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the proposal as a dict for JSON.

        Returns
        -------
        dict
            ``groups`` (path to group, of images that share one), ``rules``, ``accuracy_before`` and
            ``accuracy_after`` with their ``_ci``, and counts.
        """
        counts, pairs = Counter(self.groups), zip(self.paths, self.groups, strict=True)
        groups = {path: group for path, group in pairs if counts[group] > 1}
        return {
            "groups": groups,
            "n_groups": self.n_groups,
            "n_grouped": self.n_grouped,
            "rules": [rule.to_dict() for rule in self.rules],
            "accuracy_before": self.accuracy_before,
            "accuracy_before_ci": _as_list(self.accuracy_before_ci),
            "accuracy_after": self.accuracy_after,
            "accuracy_after_ci": _as_list(self.accuracy_after_ci),
        }

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a table ``path,label,group``, or ``path,group`` without labels.

        With labels it can be given to every verb as ``--labels``.

        Parameters
        ----------
        path : path
            An older table of groups there is replaced.

        Raises
        ------
        OutputError
            If the file cannot be written, or exists and is no table of groups.
        """
        target = check_groups_file(path)
        columns = [self.paths, *([] if self.labels is None else [self.labels]), self.groups]
        with atomic_write(target, "w", newline="", encoding="utf-8", error=OutputError) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADERS[self.labels is None])
            writer.writerows(zip(*columns, strict=True))


def _as_list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def check_groups_file(path: str | os.PathLike[str]) -> Path:
    """Check that groups can be written to a path, before any work is done.

    Parameters
    ----------
    path : path

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the file exists and is no table of groups.
    """
    return check_target(path, _is_groups_file, "a table of groups", OutputError)


def _is_groups_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.readline(MAX_HEADER_BYTES).strip().split(",") in HEADERS
    except (OSError, ValueError):
        return False


def find_groups(
    cache: CacheOrPath,
    labels: LabelsLike = None,
    *,
    column: str = "label",
    labels_level: int | None = None,
    seed: int = 0,
    say: Say = ignore,
) -> GroupProposal:
    """Propose which images belong on one side of a split.

    Images are linked by their bytes, by features that are nearer than chance has them (copies,
    crops, frames), and by names: a common stem, numbers or times that follow each other, the same
    name in several folders. A rule over names counts only where the images that it links are more
    alike than others of their folder and class.

    Parameters
    ----------
    cache : path or FeatureCache
        Its deepest layer is compared.
    labels : LabelTable or path of a CSV, optional
        As in `classify.fit`; of classes. Where there are none, all images are compared.
    column : str
        The column of the labels.
    labels_level : int, optional
        As in `classify.fit`.
    seed : int
        Of comparisons and splits.
    say : callable
        Takes a sentence on what is being done.

    Returns
    -------
    GroupProposal
        The groups, and accuracy with and without them where labels are known.

    Raises
    ------
    CallError
        If the cache has no finished image, or features are not finite.
    ClassifyError, FeaturizeError, FileNotFoundError
        If cache or labels cannot be read.
    """
    opened = open_cache(cache)
    table = _read_labels(opened, labels, column, labels_level)
    rows, names = _list_images(opened, table)
    if not len(rows):
        raise CallError(f"{opened.path} has no finished image to group")
    say(f"comparing {len(rows):,} images")
    stratum = np.unique(names or [""] * len(rows), return_inverse=True)[1]
    rules = find_group_rules(opened, rows, stratum, seed=seed)
    number = merge_rules(rules, len(rows))
    size = np.bincount(number)
    paths = opened.paths_of(rows)
    first = np.unique(number, return_index=True)[1]
    groups = [paths[first[k]] for k in number]  # named after its first image
    proposal = GroupProposal(
        paths,
        names,
        groups,
        rules,
        n_groups=int((size > 1).sum()),
        n_grouped=int(size[size > 1].sum()),
        notices=() if table is None or table.notice is None else (table.notice,),
    )
    if table is None or names is None:
        return proposal
    say("training a quick head with and without the groups")
    return _measure(opened, proposal, seed)


def _read_labels(
    cache: FeatureCache, labels: LabelsLike, column: str, level: int | None
) -> LabelTable | None:
    """Read the labels; none where none are given, and nothing names the classes."""
    spec = TaskSpec(labels, column, level, kind=CLASS)
    if labels is not None or level is not None:
        return spec.read_table(cache)
    try:
        return spec.read_table(cache)
    except LabelError:
        return None


def _list_images(
    cache: FeatureCache, table: LabelTable | None
) -> tuple[np.ndarray, list[str] | None]:
    """List the finished rows, and their classes."""
    marked = np.flatnonzero(cache.status == MARKED)
    if table is None:
        return marked, None
    label_of = dict(zip(table.paths, table.labels, strict=True))
    paths = cache.paths_of(marked)
    known = [i for i, path in enumerate(paths) if path in label_of]
    return marked[known], [label_of[paths[i]] for i in known]


def _measure(cache: FeatureCache, proposal: GroupProposal, seed: int) -> GroupProposal:
    """Measure a quick head on splits without and with the groups."""
    measured: list[tuple[float | None, tuple[float, float] | None]] = []
    notices = list(proposal.notices)
    for groups in (None, proposal.groups):
        table = LabelTable(
            "groups", "the groups", proposal.paths, list(proposal.labels or ()), None, groups
        )
        try:
            _, record = fit_classes(cache, table, QUICK_HEAD, cache.layer().name, seed=seed)
            measured.append((record.accuracy, record.accuracy_ci))
        except ClassifyError as error:
            notices.append(f"accuracy was not measured: {error}")
            measured.append((None, None))
    (before, before_ci), (after, after_ci) = measured
    return replace(
        proposal,
        accuracy_before=before,
        accuracy_before_ci=before_ci,
        accuracy_after=after,
        accuracy_after_ci=after_ci,
        notices=tuple(notices),
    )
