"""Fine-tuning on several labels, a number or grades, as scikit-learn estimators on image paths."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin

from classify.errors import CallError
from classify.finetuning.estimator import FineTuneEstimator
from classify.finetuning.objectives.grade import GradeObjective
from classify.finetuning.objectives.multi import MultiObjective
from classify.finetuning.objectives.number import NumberObjective
from classify.finetuning.objectives.objective import Objective
from classify.heads.targets.fitted import FittedTargets
from classify.kinds import GRADE, MULTI, NUMBER
from featurize.text import list_first


class FineTuneTargets(FineTuneEstimator):
    """What the estimators of labels that are not one class share.

    Its parameters are those of `classify.FineTuneClassifier`, but that there are no class weights.
    """

    head_: FittedTargets

    @staticmethod
    @abstractmethod
    def decode_values(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Turn labels as tables hold them into what `fit` takes.

        Parameters
        ----------
        values : float64 array of shape (n, T)
            As in `classify.labels.targets.table.TargetTable`.
        names : sequence of str

        Returns
        -------
        array of shape (n,), or (n, T)
        """

    def fit(self, X: Any, y: Any, *, names: Sequence[str] | None = None, **options: Any) -> Any:
        """Train on labelled images.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.
        y : array of shape (n,), or (n, T)
            Labels, see the estimator.
        names : sequence of str, optional
            Names of the T labels; the name of the number; the grades from the lowest.
        **options
            As `classify.FineTuneClassifier.fit` takes them: ``groups``, ``validation``,
            ``checkpoint``, ``deadline`` and so on.

        Returns
        -------
        FineTuneTargets
            Itself.

        Raises
        ------
        CallError
            If `y` is not of this kind, or an option is for other kinds.
        ClassifyError, FeaturizeError
            As `classify.FineTuneClassifier.fit` does.
        """
        self._names = None if names is None else tuple(map(str, names))
        return super().fit(X, y, **options)

    def predict_values(self, X: Any) -> np.ndarray:
        """Predict as numbers.

        Parameters
        ----------
        X : array of str of shape (n,)
            Image paths relative to `root`.

        Returns
        -------
        float64 array of shape (n, T)
            Probabilities of the labels; the number; or the position of the grade.

        Raises
        ------
        CallError
            If an image cannot be read.
        """
        embeddings = self.embed_paths(X)
        return self.head_.values_of(self.head_.outputs(embeddings))


class FineTuneMultiLabelClassifier(ClassifierMixin, FineTuneTargets):  # type: ignore[misc]
    """A backbone and a new classifier of any number of labels an image, trained together.

    The loss is the mean binary cross-entropy of the labels that are known. Its parameters are those
    of `classify.FineTuneClassifier`; class weights are refused. With `mixup`, labels are mixed as
    images are.

    Attributes
    ----------
    classes_ : array of shape (T,)
        The labels.
    head_ : FittedTargets
        The classifier on the tuned backbone's embeddings.
    network_, n_train_, history_, images_run_, failures_
        As of `classify.FineTuneClassifier`.
    validated_ : dict of str to array of shape (T,)
        Predicted probabilities of each validation image, by path.

    Examples
    --------
    ``FineTuneMultiLabelClassifier("resnet50", root="photos").fit(paths, Y)``, where Y (n, T) is 1,
    0, or NaN where it is not known.
    """

    @staticmethod
    def decode_values(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return the values: 1, 0, or NaN."""
        return values

    def _encode_labels(self, y: Any) -> tuple[Objective, np.ndarray]:
        names = self._names or tuple(map(str, getattr(y, "columns", ())))
        values = _to_floats(y)
        if values.ndim != 2 or not np.isin(values[~np.isnan(values)], (0, 1)).all():
            raise CallError("y has a column for each label: 1, 0, or NaN where it is not known")
        names = names or tuple(str(k) for k in range(values.shape[1]))
        if len(names) != values.shape[1]:
            raise CallError(f"{len(names):,} names do not go with {values.shape[1]:,} labels")
        self.classes_ = np.array(names, object)
        return MultiObjective(names), values

    def predict(self, X: Any) -> np.ndarray:
        """Predict the labels of each image: int64 (n, T), 1 where it has one."""
        embeddings = self.embed_paths(X)
        return self.head_.predict(embeddings)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each label by itself, float64 (n, T)."""
        return self.predict_values(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.multi_label = True
        return tags


class FineTuneRegressor(RegressorMixin, FineTuneTargets):  # type: ignore[misc]
    """A backbone and a new linear layer for a number, trained together on images.

    The loss is Huber's, of the number in standard deviations from its mean. Its parameters are
    those of `classify.FineTuneClassifier`; class weights are refused, and mixup is left out.

    Attributes
    ----------
    head_ : FittedTargets
        The last layer on the tuned backbone's embeddings; it gives the number itself.
    network_, n_train_, history_, images_run_, failures_
        As of `classify.FineTuneClassifier`.
    validated_ : dict of str to array of shape (1,)
        The predicted number of each validation image, by path.

    Examples
    --------
    ``FineTuneRegressor("resnet50", root="photos", tune="layer4").fit(paths, ages)``
    """

    @staticmethod
    def decode_values(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return the one column."""
        return values[:, 0]

    def _encode_labels(self, y: Any) -> tuple[Objective, np.ndarray]:
        name = getattr(y, "name", None)
        names = self._names or (str("number" if name is None else name),)
        values = _to_floats(y)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise CallError("y is one finite number an image")
        if len(names) != 1:
            raise CallError(f"a number has one name, not {list_first(list(names))}")
        return NumberObjective(names), values[:, None]

    def predict(self, X: Any) -> np.ndarray:
        """Predict the number of each image: float64 (n,)."""
        return self.predict_values(X)[:, 0]

    def predict_interval(self, X: Any) -> np.ndarray:
        """Return intervals that cover nine tenths of new images, float64 (n, 2)."""
        embeddings = self.embed_paths(X)
        return self.head_.predict_interval(embeddings)


class FineTuneOrdinalClassifier(ClassifierMixin, FineTuneTargets):  # type: ignore[misc]
    """A backbone and a new classifier of ordered grades, trained together on images.

    The network gives one score, and grades are told apart by cutpoints: the proportional-odds
    model. Its parameters are those of `classify.FineTuneClassifier`; class weights are refused, and
    mixup is left out.

    Attributes
    ----------
    classes_ : array of shape (G,)
        The grades from the lowest.
    head_ : FittedTargets
        The classifier on the tuned backbone's embeddings.
    network_, n_train_, history_, images_run_, failures_
        As of `classify.FineTuneClassifier`.
    validated_ : dict of str to array of shape (1,)
        The position of the predicted grade of each validation image, by path.

    Examples
    --------
    ``FineTuneOrdinalClassifier("resnet50", root="photos").fit(paths, y, names=["low", "high"])``
    """

    @staticmethod
    def decode_values(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return the grades by name."""
        return np.array(names, object)[values[:, 0].astype(np.intp)]

    def _encode_labels(self, y: Any) -> tuple[Objective, np.ndarray]:
        y = np.asarray(y)
        if y.ndim != 1:
            raise CallError("y is one grade an image")
        grades = np.unique(y)
        if self._names is None:
            if not np.issubdtype(grades.dtype, np.number):
                raise CallError(
                    f"nothing tells the order of the grades {list_first(grades.tolist())}; give "
                    "them from the lowest: fit(X, y, names=[...])"
                )
        else:
            of_name = {str(grade): grade for grade in grades}
            absent = [name for name in of_name if name not in self._names]
            if absent:
                raise CallError(f"{list_first(absent)} is none of {', '.join(self._names)}")
            grades = np.array([of_name.get(name, name) for name in self._names], object)
        self.classes_ = grades
        number = {str(grade): k for k, grade in enumerate(grades)}
        values = np.array([[number[str(grade)]] for grade in y], np.float64).reshape(-1, 1)
        return GradeObjective(tuple(number)), values

    def predict(self, X: Any) -> np.ndarray:
        """Predict the grade of each image, an array of shape (n,) of `classes_`."""
        positions = self.predict_values(X)[:, 0].astype(np.intp)
        return np.asarray(self.classes_[positions])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each grade, float64 (n, G); rows sum to 1."""
        embeddings = self.embed_paths(X)
        return self.head_.predict_proba(embeddings)


ESTIMATORS: dict[str, type[FineTuneTargets]] = {
    MULTI: FineTuneMultiLabelClassifier,
    NUMBER: FineTuneRegressor,
    GRADE: FineTuneOrdinalClassifier,
}
"""The estimator of each kind."""


def _to_floats(y: Any) -> np.ndarray:
    try:
        return np.asarray(y, np.float64)
    except (TypeError, ValueError):
        raise CallError("y is numbers") from None
