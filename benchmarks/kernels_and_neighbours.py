"""`rbf-svm` and `knn`: CPU seconds and test accuracy, beside scikit-learn and fewer settings.

    python benchmarks/kernels_and_neighbours.py [NAME ...]

goes through SqueezeNet's features of real images (all sets if none is named: HEADGRAFT_REAL tells
where weights and images are). For each: the heads of this package, a linear machine, one `SVC` with
its defaults, the kernel by landmarks, and neighbours with and without smoothing; then neighbours of
a further task over the same rows. Everything runs on one thread.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from features import BUILD, REAL, real
from machine import describe
from scipy.special import logsumexp
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from strategies import RECIPE, cifar, made
from threadpoolctl import threadpool_limits

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan, plan_folds
from classify.data.tasks import make_task
from classify.evaluation.temperature import fit_temperature
from classify.heads.registry import HEADS
from classify.labels.source_labels import resolve_labels
from classify.solvers import neighbours, rbf_svm
from classify.solvers.gram_cache import compute_fold_bases
from classify.training.train import TrainResult, train
from classify.training.training_set import TrainingSet
from featurize import run
from featurize.cache.reader import FeatureCache

LAYERS = "features.9,features.12"
SETS = {  # which images, which layer, how many of them are learnt from
    "cifar-1000": ("cifar", "features.12", 1000),
    "cifar-4000": ("cifar", "features.12", 4000),
    "cifar-7000": ("cifar", "features.12", 7000),
    "digits": ("digits", "features.12", 10_000),
    "omniglot": ("omniglot", "features.9", 10_000),
}


def cached(name: str) -> tuple[FeatureCache, Path | None]:
    """The features of a set of images, and its labels where folders do not tell them."""
    weights = str(REAL / "squeezenet1_1-imagenet.safetensors")
    small = BUILD / "recipe-96.json"
    small.parent.mkdir(parents=True, exist_ok=True)
    small.write_text(json.dumps(RECIPE))
    path, options = BUILD / f"kernels-{name}.h5", {"preprocess": str(small), "follow": True}
    if name == "cifar":
        images, table, options["preprocess"] = cifar(700, 300), None, None
    elif name == "digits":
        images, table = made("digits") / "images", made("digits") / "digit.csv"
    else:
        table = next(real("omniglot-alphabets").rglob("labels.csv"))
        images = table.parent
    run(images, path, backbone="squeezenet1_1", weights=weights, layers=LAYERS, **options)
    return FeatureCache(path), table


def timed(work: Callable[[], TrainResult]) -> tuple[TrainResult, float]:
    begun = time.process_time()
    return work(), time.process_time() - begun


def tell(name: str, seconds: float, accuracy: float, *more: object) -> None:
    print(f"  {name:34} {seconds:8.2f} s {accuracy:9.4f}", *more, flush=True)


def judge(name: str, found: TrainResult, seconds: float, y: np.ndarray, X: np.ndarray,
          truth: np.ndarray) -> None:  # fmt: skip
    scores = found.scorer.decision_values(X).astype(np.float64)
    heat = fit_temperature(found.selected.decision_values, y[found.held_out]) or 1.0
    losses = [
        (logsumexp(s, axis=1) - s[np.arange(len(truth)), truth]).mean()
        for s in (scores, scores / heat)
    ]
    chosen = {"": found.param} | found.extra_params
    settings = " ".join(f"{key}{value:.3g}" for key, value in chosen.items())
    tell(name, seconds, (scores.argmax(axis=1) == truth).mean(),
         f"log loss {losses[0]:7.3f}, calibrated {losses[1]:6.3f}   {settings}")  # fmt: skip


def measure(name: str, layer: str, count: int) -> None:
    cache, table = cached(name)
    task = make_task(cache, resolve_labels(cache, table))
    learnt = np.flatnonzero(task.split != "test")
    some = np.random.default_rng(0).permutation(learnt)[:count]
    at, test = np.sort(some), np.flatnonzero(task.split == "test")
    rows, y, K = (
        FeatureRows.from_cache(cache, [layer], task.rows[at]),
        task.y[at],
        len(task.classes),
    )
    X, truth = FeatureRows.from_cache(cache, [layer], task.rows[test]).to_array(), task.y[test]
    folds = plan_folds(y, 0, task.units[at])
    lesson = TrainingSet(rows, y, K, folds)
    print(f"{name}, {layer}: {len(y):,} rows of {rows.dim}, {len(truth):,} test rows, {K} classes")

    basis = compute_fold_bases(None, (), rows, folds)
    linear = timed(lambda: train(HEADS["linear-svm"], replace(lesson, fold_bases=basis)))
    judge("linear-svm", *linear, y, X, truth)
    begun = time.process_time()
    plain = make_pipeline(StandardScaler(), SVC()).fit(rows.to_array(), y)
    tell("SVC(), one fit", time.process_time() - begun, plain.score(X, truth))
    rbf, knn = HEADS["rbf-svm"], HEADS["knn"]
    judge("rbf-svm", *timed(lambda: train(rbf, lesson)), y, X, truth)
    one = replace(rbf, gamma_factors=(1.0,))
    judge("  with gamma = scale alone", *timed(lambda: train(one, lesson)), y, X, truth)
    with patch.object(rbf_svm, "MAX_EXACT_ROWS", 0):
        judge("  by landmarks", *timed(lambda: train(rbf, lesson)), y, X, truth)

    judge("knn", *timed(lambda: train(knn, lesson)), y, X, truth)
    near = neighbours.find_neighbours(rows, folds)

    def kept(_rows: FeatureRows, _folding: FoldPlan) -> list[np.ndarray]:
        return near

    further = replace(lesson, find_neighbours=kept)
    judge("  a further task", *timed(lambda: train(knn, further)), y, X, truth)
    logs = replace(knn, loss="log")
    judge("  k by log loss", *timed(lambda: train(logs, further)), y, X, truth)
    for more in (1e-9, 1.0, 5.0):
        with patch.object(neighbours, "SMOOTHING", more):
            judge(f"  smoothed with {more:g}", *timed(lambda: train(knn, further)), y, X, truth)


def main(names: list[str]) -> None:
    print(describe())
    print(f"  {'':34} {'CPU':>10} {'accuracy':>9}")
    with threadpool_limits(1):
        for name in names or SETS:
            measure(*SETS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
