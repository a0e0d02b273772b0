"""Options and results of fits on labels that are not one class, and results kept by the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from classify.data.targets.task import TargetTask
from classify.doubt.conformal import DEFAULT_COVERAGE, check_coverage
from classify.errors import CallError
from classify.evaluation.targets.metrics import METRICS, PRIMARY
from classify.evaluation.targets.predictions import TargetPredictions
from classify.heads.targets.record import TargetResult, read_result
from classify.labels.folders import TEST
from classify.store import compute_digest, fingerprint_layers, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache
from featurize.text import did_you_mean

VERSION = 2


@dataclass(frozen=True)
class TargetFitOptions:
    """The options of a fit that do not define the task.

    Attributes
    ----------
    seed : int
    metric : str
        The metric that heads are chosen by.
    prepare : str, or None
        ``root-l2`` or ``standardise``; None leaves the choice to validation.
    coverage : float
        Share of new images that intervals of numbers shall cover.
    """

    seed: int
    metric: str
    prepare: str | None = None
    coverage: float = DEFAULT_COVERAGE

    @classmethod
    def from_options(
        cls,
        kind: str,
        seed: int = 0,
        *,
        metric: str | None = None,
        prepare: str | None = None,
        coverage: float | None = None,
    ) -> "TargetFitOptions":
        """Check the options for a kind of labels.

        Parameters
        ----------
        kind : str
            ``multi``, ``number`` or ``grade``.
        seed : int
        metric, prepare : str, optional
        coverage : float, optional

        Returns
        -------
        TargetFitOptions

        Raises
        ------
        CallError
            If the kind has no such metric, or the coverage is no share.
        """
        name = PRIMARY[kind] if metric is None else metric.replace("-", "_")
        if name not in METRICS[kind]:
            raise CallError(
                f"labels of the kind {kind} have the metrics {', '.join(METRICS[kind])}, not "
                f"{metric!r}{did_you_mean(name, METRICS[kind])}"
            )
        return cls(seed, name, prepare, check_coverage(coverage))


@dataclass(frozen=True, eq=False)
class TargetFit:
    """The result of one fit, with predictions image by image.

    Attributes
    ----------
    record : TargetResult
    loss : float
        Held-out loss of the selected param, which compares layers and preparations of one head.
    validation, test : TargetPredictions, or None
    notices : tuple of str
    """

    record: TargetResult
    loss: float
    validation: TargetPredictions | None
    test: TargetPredictions | None
    notices: tuple[str, ...] = ()


def target_result_key(
    cache: FeatureCache,
    task: TargetTask,
    head: str,
    layers: Sequence[str],
    options: TargetFitOptions,
) -> str:
    """Compute the key of a kept result: a digest of all that decides it.

    Parameters
    ----------
    cache : FeatureCache
    task : TargetTask
    head : str
    layers : sequence of str
    options : TargetFitOptions

    Returns
    -------
    str
    """
    description = [VERSION, fingerprint_layers(cache, layers), list(layers), head, asdict(options)]
    description += [task.name, task.kind, list(task.names)]
    contents = cache.column("sha256", task.rows)
    split = task.split.astype("S5")
    return compute_digest(description, contents, task.rows, task.values, task.units, split)


def save_target_result(cache: FeatureCache, key: str, result: TargetFit) -> None:
    """Keep a result next to the cache.

    Parameters
    ----------
    cache : FeatureCache
    key : str
        From `target_result_key`.
    result : TargetFit
    """
    arrays: dict[str, np.ndarray] = {}
    for split in ("validation", "test"):
        predictions = getattr(result, split)
        if predictions is not None:
            arrays |= {
                f"{split}.{name}": np.asarray(array)
                for name, array in vars(predictions).items()
                if isinstance(array, np.ndarray)
            }
    loss = result.loss if np.isfinite(result.loss) else None
    metadata = {"record": asdict(result.record), "loss": loss, "notices": list(result.notices)}
    save_artifact(cache, "target-result", key, arrays, metadata)


def load_target_result(
    cache: FeatureCache, key: str, task: TargetTask, head: str, layers: Sequence[str]
) -> TargetFit | None:
    """Load a kept result.

    Parameters
    ----------
    cache : FeatureCache
    key : str
        From `target_result_key`.
    task : TargetTask
    head : str
    layers : sequence of str
        What the result must belong to.

    Returns
    -------
    TargetFit, or None
        None if there is none, or its content is invalid or does not fit the task.
    """
    artifact = load_artifact(cache, "target-result", key)
    if artifact is None:
        return None
    try:
        record = read_result(artifact.metadata["record"])
        loss = artifact.metadata["loss"]
        result = TargetFit(
            record,
            np.inf if loss is None else float(loss),
            _read_predictions(artifact.arrays, "validation", task),
            _read_predictions(artifact.arrays, "test", task),
            tuple(map(str, artifact.metadata["notices"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    names = (record.task, record.kind, record.head, record.layer)
    is_own = names == (task.name, task.kind, head, "+".join(layers))
    n_test = int((task.split == TEST).sum())
    n_predicted = 0 if result.test is None else len(result.test)
    return result if is_own and record.n_test == n_test == n_predicted else None


def _read_predictions(
    arrays: Mapping[str, np.ndarray], split: str, task: TargetTask
) -> TargetPredictions | None:
    if f"{split}.rows" not in arrays:
        return None
    rows, truth, values = (arrays[f"{split}.{name}"] for name in ("rows", "truth", "values"))
    thresholds = arrays.get(f"{split}.thresholds")
    positions = np.searchsorted(task.rows, rows).clip(max=len(task.rows) - 1)
    expected = task.values[positions]
    if (
        rows.dtype != np.int64
        or not np.array_equal(task.rows[positions], rows)
        or not np.array_equal(truth, expected, equal_nan=True)
        or values.shape != expected.shape
        or not np.isfinite(values).all()
        or (thresholds is not None and thresholds.shape != (expected.shape[1],))
    ):
        raise ValueError("predictions of other images")
    return TargetPredictions(task.kind, rows, truth, values, thresholds)
