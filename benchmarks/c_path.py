"""Choosing C: a path of 20 values with five folds, beside scikit-learn's `LogisticRegression`.

Twice: beside 20 cold single fits with default settings, and beside the same path and folds as a
loop of a few lines that goes on from each minimum (`warm_start=True`) and stops as ours does. All
on standardised features. The limit: less time than the single fits, at held-out accuracy within
0.005 of theirs. Beside the loop there is no limit: our own solver is there for what does not fit
into memory, and for the squared hinge, not for this.
"""

import time
import warnings

import numpy as np
from features import bench_cache, train_and_test
from machine import describe
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from classify.data.features import FeatureRows
from classify.data.folds import plan_folds
from classify.heads.registry import HEADS
from classify.solvers.gram_cache import compute_fold_bases
from classify.training.train import train
from classify.training.training_set import TrainingSet


def walked(X, y, folds, grid):
    """The path by scikit-learn: the chosen C, and the classifier with it on all rows."""
    sides = []
    for learnt, held in folds:
        scaler = StandardScaler()
        Z, out = scaler.fit_transform(X[learnt]), scaler.transform(X[held])
        model = LogisticRegression(warm_start=True, max_iter=1000)
        sides.append((model, Z, y[learnt], out, y[held]))
    means, rises = [], 0
    for C in grid:
        losses = []
        for model, Z, labels, out, truth in sides:
            model.set_params(C=C).fit(Z, labels)
            losses.append(-model.predict_log_proba(out)[np.arange(len(truth)), truth])
        means.append(float(np.concatenate(losses).mean()))
        rises = rises + 1 if len(means) > 1 and means[-1] > means[-2] else 0
        if rises == 2:
            break
    C, scaler = grid[int(np.argmin(means))], StandardScaler()
    return C, scaler, LogisticRegression(C=C, max_iter=1000).fit(scaler.fit_transform(X), y)


def main() -> None:
    print(describe())
    cache, layer = bench_cache()
    X, y, X_test, y_test = train_and_test(cache, layer)
    grid = HEADS["softmax"].grid
    print(f"{len(X):,} training rows, {len(X_test):,} test rows, {len(grid)} values of C")

    start = time.perf_counter()
    with threadpool_limits(1):
        rows, folds = FeatureRows.from_array(X), plan_folds(y, 0)
        basis = compute_fold_bases(None, (), rows, folds)  # not kept: its time is counted
        found = train(HEADS["softmax"], TrainingSet(rows, y, int(y.max()) + 1, folds, basis))
    ours = time.perf_counter() - start
    accuracy = (found.scorer.decision_values(X_test).argmax(axis=1) == y_test).mean()

    start = time.perf_counter()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        C, scaler, model = walked(X, y, folds.folds, grid)
    loop = time.perf_counter() - start
    loops = model.score(scaler.transform(X_test), y_test)

    scaler = StandardScaler()
    Z, Z_test = scaler.fit_transform(X), scaler.transform(X_test)
    seconds, accuracies = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for C in grid:
            start = time.perf_counter()
            model = LogisticRegression(C=C).fit(Z, y)
            seconds.append(time.perf_counter() - start)
            accuracies.append(model.score(Z_test, y_test))

    fits = len(folds.folds) * len(found.selected.path) + 1
    theirs, each = sum(seconds), sum(seconds) / len(grid)
    print(f"{len(grid)} cold single fits    {theirs:7.1f} s {each:6.2f} s a fit")
    print(f"path, folds and refit {ours:7.1f} s {ours / fits:6.2f} s a fit ({fits} fits)")
    print(f"ours / theirs         {ours / theirs:9.2f} {ours / fits / each:8.2f}")
    print(f"the same path as a warm-started loop {loop:7.1f} s, ours / theirs {ours / loop:.2f}; "
          f"it chose C = {C:g}: test accuracy {loops:.4f}")  # fmt: skip
    print(f"chosen C = {found.param:g}: test accuracy {accuracy:.4f}")
    print(f"theirs at that C {accuracies[grid.index(found.param)]:.4f}, "
          f"at their best of the test {max(accuracies):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
