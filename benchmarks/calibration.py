"""Whose probabilities are right: a head's own, after temperature scaling, with a bias as well?

CIFAR-10's photographs through SqueezeNet, as signed roots in unit rows. Heads learn one class
against the nine others (90:10) and all ten, from training sets of several sizes; 3,000 test images
judge. Beside them, on the very same held-out scores, scikit-learn's
`CalibratedClassifierCV(method="sigmoid")`, and with `cv=5` as one would use it: around a comparable
estimator, with the setting that was chosen here. Mean over tasks, and how often the bias was taken.
"""

import json
import warnings

import numpy as np
from features import BUILD, REAL, train_and_test
from machine import describe
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from strategies import RECIPE, cifar
from threadpoolctl import threadpool_limits

from classify.data.features import FeatureRows
from classify.data.folds import plan_folds
from classify.data.preparation import ROOT_L2, RootL2, root_l2
from classify.evaluation.calibration import calibrate
from classify.evaluation.metrics import calibration_error
from classify.evaluation.predictions import summarise_decision_values
from classify.evaluation.temperature import fit_temperature
from classify.heads.registry import get_head_spec
from classify.training.train import train
from classify.training.training_set import TrainingSet
from featurize import FeatureCache, run

LAYER = "features.12"
RARE, SIZES = (0, 3, 5, 8), (100, 300, 1000, 4000)
HEADS = {
    "softmax-lda": None,
    "ridge": lambda alpha: RidgeClassifier(alpha=alpha),
    "linear-svm": lambda C: LinearSVC(C=C, dual=False),
    "lda": lambda g: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=g),
    "ncm": lambda _: NearestCentroid(),
    "softmax": lambda C: LogisticRegression(C=C, max_iter=1000),
    "knn": None,
}
WAYS = ("own", "temperature", "as fitted", "sigmoid", "sigmoid cv=5")


class AsScored(ClassifierMixin, BaseEstimator):
    """A classifier whose features are the scores already, for `CalibratedClassifierCV`."""

    def fit(self, scores, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, scores):
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, scores):
        return scores.argmax(axis=1)


def photographs():
    """The cache, made once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    recipe = BUILD / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    run(cifar(700, 300), BUILD / "cifar-10k.h5", backbone="squeezenet1_1", layers=LAYER,
        weights=str(REAL / "squeezenet1_1-imagenet.safetensors"), preprocess=str(recipe),
        follow=True)  # fmt: skip
    return train_and_test(FeatureCache(BUILD / "cifar-10k.h5"), LAYER)


def trained(head, X, y):
    """A head with its held-out scores, as `classify.fit` trains it."""
    spec, rows = get_head_spec(head), FeatureRows.from_array(X).with_preparation(ROOT_L2)
    folds, n_classes = plan_folds(y, 0), int(y.max()) + 1
    return train(spec, TrainingSet.prepare(spec, rows, y, folds, n_classes=n_classes))


class OneScale(TransformerMixin, BaseEstimator):
    """Columns less their mean, divided by one number: what heads do to unit rows."""

    def fit(self, X, y=None):
        self.mean_, self.scale_ = X.mean(axis=0), np.sqrt(X.var(axis=0).mean())
        return self

    def transform(self, X):
        return (X - self.mean_) / self.scale_


def probabilities(head, X, y, X_test):
    """Of the test images, in every way; and whether the bias is taken."""
    found = trained(head, X, y)
    held, truth = found.selected.decision_values, y[found.held_out]
    scores = found.scorer.decision_values(root_l2(X_test))
    heat, fitted = fit_temperature(held, truth), calibrate(held, truth)
    shift = 0 if fitted.bias is None else fitted.bias
    outside = CalibratedClassifierCV(FrozenEstimator(AsScored().fit(held, truth)))
    told = {
        "own": softmax(scores, axis=1) if found.probabilistic else None,
        "temperature": softmax(scores / heat, axis=1),
        "as fitted": softmax((scores + shift) / fitted.temperature, axis=1),
        "sigmoid": outside.fit(held, truth).predict_proba(scores),
        "sigmoid cv=5": None,
    }
    if HEADS[head] is not None and len(X) <= 1000:  # LinearSVC would take minutes
        plain = make_pipeline(RootL2(), OneScale(), HEADS[head](found.param))
        told["sigmoid cv=5"] = CalibratedClassifierCV(plain, cv=5).fit(X, y).predict_proba(X_test)
    return told, fitted.bias is not None


def judged(p, y):
    """Log loss, calibration error, accuracy and balanced accuracy of probabilities (n, K)."""
    logs, classes = np.log(np.maximum(p, 1e-30)), np.arange(p.shape[1])
    said = summarise_decision_values(
        np.arange(len(y)), y, logs, classes, temperature=1.0, probabilistic=True
    )
    recall = [said.correct[y == k].mean() for k in classes]
    return [said.loss.mean(), calibration_error(said, False), said.correct.mean(), np.mean(recall)]


def main() -> None:
    print(describe())
    X, y, X_test, y_test = photographs()
    tasks = [("90:10", k) for k in RARE] + [("10 classes", None)]
    print(f"{'task':10} {'rows':>5} {'head':10} {'way':13} {'log loss':>8} {'ECE':>6} "
          f"{'accuracy':>8} {'balanced':>8}  bias")  # fmt: skip
    for kind in dict(tasks):
        for size in SIZES:
            some = np.random.default_rng(size).permutation(len(y))[:size]
            for head in HEADS:
                sums = {way: [] for way in WAYS}
                taken = 0
                for _, rare in (task for task in tasks if task[0] == kind):
                    of, of_test = (v if rare is None else 1 * (v == rare) for v in (y, y_test))
                    told, bias = probabilities(head, X[some], of[some], X_test)
                    taken += bias
                    for way, p in told.items():
                        if p is not None:
                            sums[way].append(judged(p, of_test))
                for way, found in sums.items():
                    if found:
                        loss, error, right, even = np.mean(found, axis=0)
                        note = f"  {taken}/{len(found)}" if way == "as fitted" else ""
                        print(f"{kind:10} {size:5} {head:10} {way:13} {loss:8.3f} {error:6.3f} "
                              f"{right:8.3f} {even:8.3f}{note}", flush=True)  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", "self.within_class_std_dev_")
    with threadpool_limits(1):
        main()
