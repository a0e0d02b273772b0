"""The options that define a task, whatever the kind of its labels."""

import os
from dataclasses import dataclass, fields
from typing import Any

from classify.data.targets.task import TargetTask, make_target_task
from classify.data.tasks import Task, make_task
from classify.errors import CallError
from classify.labels.table import LabelsLike, LabelTable
from classify.labels.targets.kinds import KindOptions, WordsLike
from classify.labels.targets.resolve import (
    TargetsLike,
    resolve_listing_targets,
    resolve_targets,
)
from classify.labels.targets.table import TargetTable
from featurize.cache.reader import FeatureCache
from featurize.sources.listing import ImageListing


@dataclass(frozen=True)
class TaskSpec:
    """The options that define a task, as the user gives them.

    Attributes
    ----------
    labels : LabelTable or path of a CSV, optional
        The labels that came with the images, if not given; where there are none, folder names.
    column : str
        The column of the CSV that holds the labels.
    labels_level : int, optional
        Which folder names the label, 1 for the topmost. Inferred if not given.
    test_size : float
        The share of every class to hold out where the table has no split; 0 holds out nothing.
    seed : int
        Decides which images are held out.
    kind : str, optional
        ``class``, ``multi``, ``number`` or ``grade``; recognised if not given.
    columns : str or sequence of str, optional
        Columns of 0 and 1, each for one label; then the kind is ``multi``.
    order : str or sequence of str, optional
        The grades from the lowest; then the kind is ``grade``.
    """

    labels: TargetsLike = None
    column: str = "label"
    labels_level: int | None = None
    test_size: float = 0.2
    seed: int = 0
    kind: str | None = None
    columns: WordsLike = None
    order: WordsLike = None

    def read_any_table(self, cache: FeatureCache) -> LabelTable | TargetTable:
        """Return the label table: given, that came with the images, or of folder names.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        LabelTable or TargetTable
            The first for classes.

        Raises
        ------
        LabelError, CallError, FileNotFoundError
            As `classify.labels.targets.resolve.resolve_targets`.
        """
        options = KindOptions.from_options(self.kind, self.columns, self.order)
        return resolve_targets(cache, self.labels, options, self.column, self.labels_level)

    def read_listing_table(self, listing: ImageListing) -> LabelTable | TargetTable:
        """Return the label table over images that are in no cache.

        Parameters
        ----------
        listing : ImageListing

        Returns
        -------
        LabelTable or TargetTable
            The first for classes.

        Raises
        ------
        LabelError, CallError, FileNotFoundError
            As `read_any_table`.
        """
        options = KindOptions.from_options(self.kind, self.columns, self.order)
        return resolve_listing_targets(
            listing, self.labels, options, self.column, self.labels_level
        )

    def read_table(self, cache: FeatureCache) -> LabelTable:
        """Return the label table of classes.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        LabelTable

        Raises
        ------
        LabelError, CallError, FileNotFoundError
            As `read_any_table`, and if the labels are of another kind.
        """
        table = self.read_any_table(cache)
        if isinstance(table, TargetTable):
            raise CallError(
                f"{table.source} holds labels of the kind {table.kind}, and this takes classes; "
                "if they are classes, give --kind class"
            )
        return table

    @property
    def class_labels(self) -> LabelsLike:
        """The labels, where they may be of classes.

        Raises
        ------
        CallError
            If they are a table of another kind.
        """
        if isinstance(self.labels, TargetTable):
            raise CallError(f"this takes labels of classes, not of the kind {self.labels.kind}")
        return self.labels

    def make_task(self, cache: FeatureCache) -> Task:
        """Make the task of classes over a cache.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        Task

        Raises
        ------
        ClassifyError, FileNotFoundError
            As `make_task` and `read_table`.
        """
        table = self.read_table(cache)
        return make_task(cache, table, test_size=self.test_size, seed=self.seed)

    def make_any_task(self, cache: FeatureCache) -> Task | TargetTask:
        """Make the task over a cache, of classes or of another kind.

        Parameters
        ----------
        cache : FeatureCache

        Returns
        -------
        Task or TargetTask

        Raises
        ------
        ClassifyError, FileNotFoundError
            As `make_task`, `make_target_task` and `read_any_table`.
        """
        table = self.read_any_table(cache)
        if isinstance(table, TargetTable):
            return make_target_task(cache, table, test_size=self.test_size, seed=self.seed)
        return make_task(cache, table, test_size=self.test_size, seed=self.seed)

    def as_keywords(self) -> dict[str, Any]:
        """Return all options but the labels as keyword arguments of the public functions.

        Returns
        -------
        dict of str to object
        """
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def as_class_keywords(self) -> dict[str, Any]:
        """Return the options of tasks of classes as keyword arguments.

        Returns
        -------
        dict of str to object
            `as_keywords` without ``kind``, ``columns`` and ``order``.
        """
        keywords = self.as_keywords()
        return {k: v for k, v in keywords.items() if k not in ("kind", "columns", "order")}

    def as_command_options(self) -> list[str]:
        """Return the options that differ from the defaults as words of a command line.

        Returns
        -------
        list of str
        """
        options: list[str] = []
        if self.labels is not None:
            labels = self.labels
            if isinstance(labels, (LabelTable, TargetTable)):
                source = labels.source
            else:
                source = os.fspath(labels)
            options += ["--labels", source]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                text = ",".join(value) if isinstance(value, (list, tuple)) else str(value)
                options += [f"--{field.name.replace('_', '-')}", text]
        return options
