"""The metric by which params are selected and heads are ranked."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from classify.errors import CallError, LabelError
from classify.evaluation.temperature import fit_temperature
from featurize.text import did_you_mean

LOWER_IS_BETTER = ("log_loss", "cost")  # the other metrics are better when higher

METRIC_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "log_loss",
    "auroc",
    "average_precision",
)
COST = "cost"
COST_COLUMNS = ("truth", "predicted", "cost")
MAX_COST_BYTES = 64 << 20  # size of a table of costs


@dataclass(frozen=True)
class SelectionMetric:
    """One number that measures the quality of a head's decision values.

    Attributes
    ----------
    name : str
        One of `METRIC_NAMES`, or ``cost``.
    costs : mapping of (str, str) to float
        The cost of predicting a class for another, by truth and prediction. A pair that is not
        there costs 1, a correct prediction 0.
    """

    name: str = "accuracy"
    costs: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return -1 if self.name in LOWER_IS_BETTER else 1

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ").replace("auroc", "AUROC")

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse costs of classes that a task does not have.

        Parameters
        ----------
        classes : sequence of str
            The task's classes.

        Raises
        ------
        CallError
            If the costs name another class.
        """
        unknown = sorted({name for pair in self.costs for name in pair} - {*classes})
        if unknown:
            raise CallError(
                f"the costs name {unknown[0]!r}{did_you_mean(unknown[0], classes)}, which is no "
                f"class of this task, whose classes are {', '.join(map(repr, [*classes][:5]))}"
            )

    def compute(
        self,
        decision_values: np.ndarray,
        y: np.ndarray,
        classes: Sequence[str],
        temperature: float | None = 1.0,
    ) -> float | None:
        """Compute the metric of some decision values.

        Parameters
        ----------
        decision_values : float array of shape (n, K)
            The greatest of a row is predicted.
        y : int array of shape (n,)
            Positions in `classes`; -1 for a class that is not among them.
        classes : list of str
            K class names.
        temperature : float, optional
            For probabilities, softmax(decision values / temperature); 1 if None.

        Returns
        -------
        float, or None
            None where the metric is undefined: there are no images, or, for ``auroc`` and
            ``average_precision`` (means over classes), no class has images both in it and outside
            it.
        """
        if not len(y):
            return None
        predicted = decision_values.argmax(axis=1)
        if self.name == "accuracy":
            return float((predicted == y).mean())
        if self.name == "balanced_accuracy":
            return float(recall_score(y, predicted, labels=np.unique(y), average="macro"))
        if self.name == "macro_f1":
            return float(
                f1_score(y, predicted, labels=np.unique(y), average="macro", zero_division=0)
            )
        if self.name == COST:
            return float(self._cost_matrix(classes)[y, predicted].mean())
        proba = softmax(decision_values.astype(np.float64) / (temperature or 1), axis=1)
        if self.name == "log_loss":
            truth_proba = np.where(y < 0, 0.0, proba[np.arange(len(y)), y])
            return float(-np.log(np.maximum(truth_proba, np.exp(-100))).mean())
        return self._compute_ranking(decision_values if decision_values.shape[1] == 2 else proba, y)

    def compute_loss(
        self, decision_values: np.ndarray, y: np.ndarray, classes: Sequence[str]
    ) -> float:
        """Compute what selection minimises: the metric, negated if higher is better.

        Parameters
        ----------
        decision_values, y, classes
            As in `compute`; for the log loss a temperature is fitted.

        Returns
        -------
        float
            0 where the metric is undefined.
        """
        temperature = fit_temperature(decision_values, y) if self.name == "log_loss" else 1.0
        value = self.compute(decision_values, y, classes, temperature)
        return 0.0 if value is None else -self.sign * value

    def _cost_matrix(self, classes: Sequence[str]) -> np.ndarray:
        """Return costs by truth and prediction, with a last row for a class without a column."""
        costs = np.array(
            [
                [
                    self.costs.get((truth, predicted), float(truth != predicted))
                    for predicted in classes
                ]
                for truth in classes
            ]
        )
        return np.concatenate([costs, costs.max(axis=0, keepdims=True)])

    def _compute_ranking(self, values: np.ndarray, y: np.ndarray) -> float | None:
        values, y = values[y >= 0], y[y >= 0]
        if values.shape[1] == 2:  # the margin between the two ranks both classes
            values = np.stack([values[:, 0] - values[:, 1], values[:, 1] - values[:, 0]], axis=1)
        measure = roc_auc_score if self.name == "auroc" else average_precision_score
        measurable = [
            column for column in range(values.shape[1]) if 0 < (y == column).sum() < len(y)
        ]
        per_class = [measure(y == column, values[:, column]) for column in measurable]
        return float(np.mean(per_class)) if per_class else None


ACCURACY = SelectionMetric()


def resolve_metric(metric: str | None) -> SelectionMetric:
    """Resolve a metric option.

    Parameters
    ----------
    metric : str, optional
        One of `METRIC_NAMES`, or the path of a CSV table of costs with the columns ``truth``,
        ``predicted`` and ``cost``. The accuracy if not given.

    Returns
    -------
    SelectionMetric

    Raises
    ------
    CallError
        If there is no such metric.
    FileNotFoundError
        If there is no such file.
    LabelError
        If the table does not have these columns, a cost is not a number from 0 on, or a pair is
        there twice.
    """
    name = "accuracy" if metric is None else metric.replace("-", "_")
    if name in METRIC_NAMES:
        return SelectionMetric(name)
    if not (metric or "").endswith(".csv"):
        raise CallError(
            f"no metric {metric!r}, only {', '.join(METRIC_NAMES)}, and a CSV table of costs with "
            f"the columns {', '.join(COST_COLUMNS)}{did_you_mean(name, METRIC_NAMES)}"
        )
    return SelectionMetric(COST, _read_costs(Path(metric or "")))


def _read_costs(path: Path) -> dict[tuple[str, str], float]:
    if not path.exists():
        raise FileNotFoundError(f"the table of costs {path} does not exist")
    if not path.is_file() or path.stat().st_size > MAX_COST_BYTES:
        raise LabelError(f"{path} is no file, or larger than {MAX_COST_BYTES >> 20} MB: not costs")
    costs: dict[tuple[str, str], float] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if set(reader.fieldnames or ()) != set(COST_COLUMNS):
                raise LabelError(
                    f"{path}: a table of costs has the columns {', '.join(COST_COLUMNS)}"
                )
            for record in reader:
                pair, cost = (
                    (str(record["truth"]), str(record["predicted"])),
                    _parse_cost(record["cost"]),
                )
                where = f"{path}, line {reader.line_num}"
                if cost is None:
                    raise LabelError(f"{where}: {record['cost']!r} is no cost: a number from 0 on")
                if pair in costs:
                    raise LabelError(f"{where}: {pair[0]!r} taken for {pair[1]!r} is there twice")
                costs[pair] = cost
        except (UnicodeDecodeError, csv.Error) as error:
            raise LabelError(f"{path}, line {reader.line_num}: {error}") from error
    return costs


def _parse_cost(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
