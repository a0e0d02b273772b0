"""Label-free statistics kept beside a cache, so that a further task costs class sums alone."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from classify.data.features import FeatureRows
from classify.data.folds import FoldPlan
from classify.solvers.gram import GramStats, PrincipalBasis, choose_scaling
from classify.store import compute_digest, fingerprint_layers, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache

VERSION = 3
ALWAYS_STORED_BYTES = 64 << 20  # bytes that may always be kept
_recent: dict[str, list[PrincipalBasis]] = {}  # the last: ridge, LDA and class means come in a row


def compute_fold_bases(
    cache: FeatureCache | None,
    layers: Sequence[str],
    rows: FeatureRows,
    fold_plan: FoldPlan,
    weights: np.ndarray | None = None,
    *,
    save_stats: bool = True,
) -> list[PrincipalBasis]:
    """The spectrum of what each fold trains on, and last that of the final head's rows.

    Kept beside the cache, where that takes no more room than the features, and recalled. The key
    is the layers, the contents of the rows and their parts: growth renews them. No other row of the
    cache has a part in them.

    Parameters
    ----------
    cache : FeatureCache, or None
        None for features that are in memory only.
    layers : sequence of str
    rows : FeatureRows
        n rows of the cache.
    folding : FoldPlan
        Of the same rows.
    weights : float array of shape (n,), optional
        Weights depend on labels: with them nothing is kept.
    save_stats : bool
        Whether to keep them beside the cache; no other task asks for those of a draw of many.

    Raises
    ------
    CallError
        If the features are too wide.
    """
    if cache is None or weights is not None or fold_plan.train_indices is not None:
        return _compute_bases(rows, fold_plan, weights)
    contents = cache.column("sha256")[rows.rows]
    about = [
        VERSION,
        fingerprint_layers(cache, layers),
        rows.is_root_l2,
        _list_excluded_parts(fold_plan),
    ]
    key = compute_digest(about, contents, fold_plan.part.astype(np.int64))
    if key in _recent:
        return _recent[key]
    kept = load_artifact(cache, "spectra", key)
    found = (
        None
        if kept is None
        else _decode_bases(kept.arrays, len(fold_plan.val_indices) + 1, rows.dim)
    )
    if found is None:
        found = _compute_bases(rows, fold_plan, None)
        arrays = {
            f"{i}.{field.name}": np.asarray(getattr(spectrum, field.name), np.float64)
            for i, spectrum in enumerate(found)
            for field in fields(PrincipalBasis)
        }
        size = sum(array.nbytes for array in arrays.values())
        if save_stats and size <= max(rows.nbytes, ALWAYS_STORED_BYTES):
            save_artifact(
                cache, "spectra", key, arrays, {"layers": list(layers), "rows": len(rows)}
            )
    _recent.clear()
    _recent[key] = found
    return found


def _list_excluded_parts(fold_plan: FoldPlan) -> list[int | None]:
    """The part that each fold leaves out, then the one that the final head does."""
    return [*range(len(fold_plan.val_indices)), 0 if fold_plan.has_val_split else None]


def _compute_bases(
    rows: FeatureRows, fold_plan: FoldPlan, weights: np.ndarray | None
) -> list[PrincipalBasis]:
    excluded = _list_excluded_parts(fold_plan)
    if fold_plan.train_indices is not None:
        trains = [*fold_plan.train_indices, fold_plan.final_indices]
    elif len(rows) < rows.dim:  # then their n x n products are the smaller problem
        trains = [np.flatnonzero(fold_plan.part != (-1 if i is None else i)) for i in excluded]
    else:
        stats = GramStats.from_rows(rows, fold_plan.part, int(fold_plan.part.max()) + 1, weights)
        scaling = choose_scaling(rows)
        return [PrincipalBasis.from_gram(*stats.compute_centred(i), scaling) for i in excluded]
    return [_compute_basis(rows, train, weights) for train in trains]


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
    """What was kept, or None if it is not what it should be."""
    names, found = [field.name for field in fields(PrincipalBasis)], []
    if set(arrays) != {f"{i}.{name}" for i in range(n) for name in names} or not _is_finite_float64(
        arrays
    ):
        return None
    for i in range(n):
        spectrum = PrincipalBasis(**{name: arrays[f"{i}.{name}"] for name in names})  # type: ignore[arg-type]
        size = spectrum.values.shape[:1]
        shapes = {"count": (), "mean": (dim,), "scale": (dim,), "values": size}
        if {k: v.shape for k, v in vars(spectrum).items()} != shapes | {"vectors": (dim, *size)}:
            return None
        if not (spectrum.count > 0 and (spectrum.scale > 0).all() and (spectrum.values > 0).all()):
            return None
        found.append(spectrum)
    return found


def _is_finite_float64(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values())
