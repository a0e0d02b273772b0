"""`HeadRegressor`: a head for numbers as a scikit-learn regressor."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from classify.data.features import FeatureRows
from classify.data.folds import MAX_FOLDS, FoldPlan, plan_folds
from classify.data.targets.stratify import assign_strata
from classify.data.units import hash_rows, link_same_bytes, number_units
from classify.errors import CallError
from classify.heads.targets.registry import RIDGE, get_target_head_spec
from classify.kinds import NUMBER
from classify.training.targets.target_set import TargetSet
from classify.training.targets.train import train_targets


class HeadRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A head for numbers by its name, with its param selected by validation.

    Parameters
    ----------
    head : str, default "ridge"
        ``ridge``, ``kernel-ridge``, ``knn``, or a regressor of scikit-learn as
        ``package.module:Class``.
    cv : None, int, splitter or iterable
        Folds for selection of the param; None is five, stratified by quantiles.
    seed : int, default 0
        Seed of the folds.

    Attributes
    ----------
    settings_ : dict of str to float
        The selected params by name.
    n_features_in_ : int
        Number of features D.
    notices_ : tuple of str
        Messages for the user about this fit.
    scorer_ : LinearModel or EstimatorModel
        The model, from features to numbers.

    Examples
    --------
    ``make_pipeline(CachedFeatures("photos.h5"), RootL2(), HeadRegressor())``
    """

    def __init__(self, head: str = RIDGE, *, cv: Any = None, seed: int = 0) -> None:
        self.head = head
        self.cv = cv
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Select the param and train.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.
        y : array of shape (n,) or (n, T)
            Numbers.
        groups : array of shape (n,), optional
            Rows of one group are never on both sides of a fold.

        Returns
        -------
        self
            The fitted regressor.

        Raises
        ------
        UnknownHeadError
            If there is no such head for numbers.
        ValueError
            If an option or the data is wrong; the message says which.
        """
        spec = get_target_head_spec(self.head, NUMBER)
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, y_numeric=True)
        self._is_single = y.ndim == 1
        values = np.asarray(y, np.float64).reshape(len(X), -1)
        if groups is not None and np.shape(groups) != (len(X),):
            raise CallError(f"groups is one a row, shape ({len(X)},), not {np.shape(groups)}")
        fold_plan = self._plan_folds(X, values, groups)
        with threadpool_limits(1):
            target_set = TargetSet(NUMBER, FeatureRows.from_array(X), values, None, fold_plan)
            trained = train_targets(spec, target_set)
        self.scorer_, self.settings_ = trained.model, trained.settings
        self.notices_ = tuple(trained.notices)
        return self

    def _plan_folds(self, X: np.ndarray, values: np.ndarray, groups: Any) -> FoldPlan:
        """Plan folds that keep groups and identical rows together."""
        n = len(X)
        if self.cv is not None and not isinstance(self.cv, (int, np.integer)):
            splits = list(check_cv(self.cv, values[:, 0]).split(X, values[:, 0], groups))
            rows = np.arange(n)
            return FoldPlan(
                np.zeros(n, np.int16),
                [rows[held_out] for _, held_out in splits],
                train_indices=[rows[train] for train, _ in splits],
            )
        n_folds = MAX_FOLDS if self.cv is None else int(self.cv)
        if n_folds < 2:
            raise CallError(f"cv is a number of folds from 2 on, not {self.cv}")
        numbers = None if groups is None else np.unique(groups, return_inverse=True)[1]
        unit = number_units(numbers, n, link_same_bytes(hash_rows(X, np.arange(n))))
        return plan_folds(assign_strata(NUMBER, values), self.seed, unit, max_folds=n_folds)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the number of each row.

        Parameters
        ----------
        X : array of shape (n, D)
            Features; used as float32.

        Returns
        -------
        float64 array of shape (n,) or (n, T)
            As `y` was.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        values = self.scorer_.decision_values(X).astype(np.float64)
        return values[:, 0] if self._is_single else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = False
        return tags
