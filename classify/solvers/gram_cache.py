"""Principal bases stored next to a cache, so that a further task needs class sums only."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.solvers.gram import GramStats, PrincipalBasis, choose_scaling
from classify.store import compute_digest, fingerprint_layers, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

VERSION = 3
ALWAYS_STORED_BYTES = 64 << 20  # bases of at most this size are always stored
_recent: dict[str, list[PrincipalBasis]] = {}  # the last result, which several heads use in turn


def compute_fold_bases(
    cache: FeatureCache | None,
    layers: Sequence[str],
    rows: FeatureRows,
    fold_plan: FoldPlan,
    weights: np.ndarray | None = None,
    *,
    save_stats: bool = True,
) -> list[PrincipalBasis]:
    """Compute the principal basis of each fold's training rows, then that of the final rows.

    The bases are stored next to the cache if they are no larger than the features, and loaded from
    there. The key is made of the layers, the contents of the rows and their parts. Other rows of
    the cache do not affect it.

    Parameters
    ----------
    cache : FeatureCache, or None
        None for features that are in memory only.
    layers : sequence of str
        Layers of the cache that the rows have.
    rows : FeatureRows
        n rows of the cache.
    fold_plan : FoldPlan
        Folds of these rows.
    weights : float array of shape (n,), optional
        Weight of each row. Weights depend on labels, so with them nothing is stored.
    save_stats : bool, default True
        Whether to store the bases next to the cache. Those of one of many random draws are of no
        use to another task.

    Returns
    -------
    list of PrincipalBasis
        One for each fold, and last one for the final rows.

    Raises
    ------
    CallError
        If the features are too wide.
    """
    if cache is None or weights is not None or fold_plan.train_indices is not None:
        return _compute_bases(rows, fold_plan, weights)
    contents = cache.column("sha256", rows.rows)
    description = [
        VERSION,
        fingerprint_layers(cache, layers),
        rows.is_root_l2,
        _list_excluded_parts(fold_plan),
    ]
    key = compute_digest(description, contents, fold_plan.part.astype(np.int64))
    if key in _recent:
        return _recent[key]
    artifact = load_artifact(cache, "spectra", key)
    bases = (
        None
        if artifact is None
        else _decode_bases(artifact.arrays, len(fold_plan.val_indices) + 1, rows.dim)
    )
    if bases is None:
        bases = _compute_bases(rows, fold_plan, None)
        arrays = {
            f"{i}.{field.name}": np.asarray(getattr(basis, field.name), np.float64)
            for i, basis in enumerate(bases)
            for field in fields(PrincipalBasis)
        }
        size = sum(array.nbytes for array in arrays.values())
        if save_stats and size <= max(rows.nbytes, ALWAYS_STORED_BYTES):
            save_artifact(
                cache, "spectra", key, arrays, {"layers": list(layers), "rows": len(rows)}
            )
    _recent.clear()
    _recent[key] = bases
    return bases


def _list_excluded_parts(fold_plan: FoldPlan) -> list[int | None]:
    """List the part that each fold leaves out, then that of the final head."""
    return [*range(len(fold_plan.val_indices)), 0 if fold_plan.has_val_split else None]


def _compute_bases(
    rows: FeatureRows, fold_plan: FoldPlan, weights: np.ndarray | None
) -> list[PrincipalBasis]:
    excluded = _list_excluded_parts(fold_plan)
    if fold_plan.train_indices is not None:
        train_indices = [*fold_plan.train_indices, fold_plan.final_indices]
    elif len(rows) < rows.dim:  # the n x n products are the smaller problem
        train_indices = [
            np.flatnonzero(fold_plan.part != (-1 if i is None else i)) for i in excluded
        ]
    else:
        stats = GramStats.from_rows(rows, fold_plan.part, int(fold_plan.part.max()) + 1, weights)
        scaling = choose_scaling(rows)
        return [PrincipalBasis.from_gram(*stats.compute_centred(i), scaling) for i in excluded]
    return [_compute_basis(rows, indices, weights) for indices in train_indices]


def _compute_basis(
    rows: FeatureRows, positions: np.ndarray, weights: np.ndarray | None
) -> PrincipalBasis:
    chosen, chosen_weights = rows.subset(positions), None if weights is None else weights[positions]
    if len(rows) < rows.dim:
        return PrincipalBasis.from_rows(chosen, chosen_weights)
    stats = GramStats.from_rows(chosen, weights=chosen_weights)
    return PrincipalBasis.from_gram(*stats.compute_centred(), choose_scaling(rows))


def _decode_bases(
    arrays: Mapping[str, np.ndarray], n: int, dim: int
) -> list[PrincipalBasis] | None:
    """Decode stored bases; None if they do not fit."""
    names, bases = [field.name for field in fields(PrincipalBasis)], []
    if set(arrays) != {f"{i}.{name}" for i in range(n) for name in names} or not _is_finite_float64(
        arrays
    ):
        return None
    for i in range(n):
        basis = PrincipalBasis(**{name: arrays[f"{i}.{name}"] for name in names})  # type: ignore[arg-type]
        size = basis.values.shape[:1]
        shapes = {"count": (), "mean": (dim,), "scale": (dim,), "values": size}
        if {k: v.shape for k, v in vars(basis).items()} != shapes | {"vectors": (dim, *size)}:
            return None
        if not (basis.count > 0 and (basis.scale > 0).all() and (basis.values > 0).all()):
            return None
        bases.append(basis)
    return bases


def _is_finite_float64(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values())
