"""Heads with a closed form: ridge, LDA and nearest class mean, from class sums and a spectrum."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from classify.choice import Step
from classify.features import Rows
from classify.scorers import ABSENT, Linear
from classify.spectrum import Spectrum

COLUMNS = 512  # of scores at once: settings side by side make one product of matrices
MAX_SCORES = 16_000_000  # held at once, 64 MB


@dataclass(frozen=True, eq=False)
class ClassSums:
    """All that a task adds to label-free statistics.

    Attributes
    ----------
    count : float64 array of shape (K,)
        Rows of each class, or the sum of their weights.
    total : float64 array of shape (K, D)
        The sum of their features.
    """

    count: np.ndarray
    total: np.ndarray

    def less(self, other: "ClassSums") -> "ClassSums":
        """What remains without some rows."""
        return ClassSums(self.count - other.count, self.total - other.total)


def class_sums(
    rows: Rows,
    y: np.ndarray,
    n_classes: int,
    part: np.ndarray,
    n_parts: int,
    weights: np.ndarray | None = None,
) -> list[ClassSums]:
    """Sum the features of each class in each of P parts, in one pass.

    Parameters
    ----------
    rows : Rows
        n of them.
    y, part : int arrays of shape (n,)
    n_classes, n_parts : int
    weights : float array of shape (n,), optional

    Returns
    -------
    list of P ClassSums
    """
    cells = n_parts * n_classes
    count, total = np.zeros(cells), np.zeros((cells, rows.dim))
    cell = np.where(y < 0, -1, part.astype(np.intp) * n_classes + y)
    for where, block in rows.blocks():
        used, at = np.unique(cell[where], return_inverse=True)
        share = np.zeros((len(used), len(block)), np.float32)
        share[at, np.arange(len(block))] = 1 if weights is None else weights[where]
        if used[0] < 0:  # images of classes that are not learnt
            used, share = used[1:], share[1:]
        total[used] += share @ block
        count[used] += share.sum(axis=1)
    return [
        ClassSums(count[p : p + n_classes], total[p : p + n_classes])
        for p in range(0, cells, n_classes)
    ]


def solve(
    kind: str,
    spectrum: Spectrum,
    sums: ClassSums,
    settings: Sequence[float | None],
    *,
    balanced: bool = False,
) -> list[Linear]:
    """Solve one head for several settings.

    Parameters
    ----------
    kind : str
        ``ridge``: least squares to targets of 1 and -1, with `settings` the alpha of scikit-learn's
        `RidgeClassifier`. ``lda``: linear discriminants with the pooled covariance S shrunk to
        (1 - g) S + g tr(S)/D I, `settings` being g: Friedman (1989), "Regularized discriminant
        analysis", JASA 84. ``ncm``: the nearest class mean; no setting.
    spectrum : Spectrum
        Of the training rows.
    sums : ClassSums
        Of the same rows.
    settings : sequence of float
    balanced : bool
        Every class counts as equally likely. For ``ridge`` the weights of spectrum and sums say so.
    """
    present = sums.count > 0
    means = sums.total - sums.count[:, None] * spectrum.mean
    means /= np.maximum(sums.count, 1e-300)[:, None] * spectrum.scale
    within = spectrum.vectors.T @ means.T  # (R, K): class means along the principal directions
    share = sums.count / spectrum.count
    found = []
    for setting in settings:
        if kind == "ridge":
            coef = 2 * within * sums.count / (spectrum.values + setting)[:, None]
            intercept = 2 * share - 1
        elif kind == "lda":
            prior = np.where(present, 1 / present.sum(), 0) if balanced else share
            coef = _discriminants(spectrum, within, share, float(setting or 0))
            intercept = -0.5 * (within * coef).sum(axis=0) + np.log(np.maximum(prior, 1e-300))
        else:
            coef, intercept = within, -0.5 * (within**2).sum(axis=0)
        if kind != "ridge":
            intercept = np.where(present, intercept, ABSENT)
        weights = (spectrum.vectors @ coef).T
        found.append(Linear(spectrum.mean, spectrum.scale, weights, intercept))
    return found


def _discriminants(
    spectrum: Spectrum, within: np.ndarray, share: np.ndarray, shrinkage: float
) -> np.ndarray:
    """The shrunk pooled covariance's inverse times the class means, (R, K).

    The pooled covariance is the total one, diagonal here, less the K class means' own: a small
    system of K by K by Woodbury's identity, for any number of rows.
    """
    dim = len(spectrum.mean)
    between = within * np.sqrt(share)  # (R, K)
    trace = (spectrum.values.sum() / spectrum.count - (between**2).sum()) / dim
    keep = 1 - shrinkage
    diagonal = keep * spectrum.values / spectrum.count + shrinkage * max(trace, 1e-12)
    straight = within / diagonal[:, None]
    if keep == 0:
        return np.asarray(straight)
    leaning = between / diagonal[:, None]
    small = np.eye(len(share)) / keep - between.T @ leaning
    return np.asarray(straight + leaning @ np.linalg.solve(small, between.T @ straight))


def held_out(
    kind: str,
    grid: Sequence[float | None],
    rows: Rows,
    folds: Sequence[tuple[Spectrum, ClassSums, np.ndarray]],
    *,
    balanced: bool = False,
) -> Iterator[Step]:
    """Walk a grid: the held-out scores of every fold, several settings in one pass over them.

    Parameters
    ----------
    kind, grid
        As in `solve`.
    rows : Rows
        n of them.
    folds : sequence of (Spectrum, ClassSums, int array)
        Of what is trained on, and the positions of what is held out.

    Yields
    ------
    Step
        Scores in the order of the folds.
    """
    n_classes = len(folds[0][1].count)
    n_held = sum(len(held) for _, _, held in folds)
    size = max(1, min(COLUMNS, MAX_SCORES // max(n_held, 1)) // n_classes)
    for start in range(0, len(grid), size):
        settings = grid[start : start + size]
        scores = np.empty((len(settings), n_held, n_classes), np.float32)
        begin = 0
        for spectrum, sums, held in folds:
            models = solve(kind, spectrum, sums, settings, balanced=balanced)
            side_by_side = Linear(
                spectrum.mean,
                spectrum.scale,
                np.concatenate([model.coef for model in models]),
                np.concatenate([model.intercept for model in models]),
            )
            for where, block in rows.at(held).blocks():
                found = side_by_side.scores(block).reshape(len(block), len(settings), n_classes)
                scores[:, begin + where.start : begin + where.stop] = found.swapaxes(0, 1)
            begin += len(held)
        yield from (Step(setting, scores[i]) for i, setting in enumerate(settings))
