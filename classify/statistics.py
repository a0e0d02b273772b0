"""Label-free statistics kept beside a cache, so that a further task costs class sums alone."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from classify.features import Rows
from classify.kept import digest, identity_of, keep, recall
from classify.moments import Moments
from classify.spectrum import COLUMNS, WHOLE, Spectrum
from classify.splits import Folding
from featurize.cache import FeatureCache

VERSION = 3
SMALL = 64 << 20  # bytes that may always be kept
_recent: dict[str, list[Spectrum]] = {}  # the last: ridge, LDA and class means come in a row


def spectra(
    cache: FeatureCache | None,
    layers: Sequence[str],
    rows: Rows,
    folding: Folding,
    weights: np.ndarray | None = None,
    *,
    lasting: bool = True,
) -> list[Spectrum]:
    """The spectrum of what each fold trains on, and last that of the final head's rows.

    Kept beside the cache, where that takes no more room than the features, and recalled. The key
    is the layers, the contents of the rows and their parts: growth renews them. No other row of the
    cache has a part in them.

    Parameters
    ----------
    cache : FeatureCache, or None
        None for features that are in memory only.
    layers : sequence of str
    rows : Rows
        n rows of the cache.
    folding : Folding
        Of the same rows.
    weights : float array of shape (n,), optional
        Weights depend on labels: with them nothing is kept.
    lasting : bool
        Whether to keep them beside the cache; no other task asks for those of a draw of many.

    Raises
    ------
    CallError
        If the features are too wide.
    """
    if cache is None or weights is not None or folding.trains is not None:
        return _computed(rows, folding, weights)
    contents = cache.column("sha256")[rows.rows]
    about = [VERSION, identity_of(cache, layers), rows.rooted, _left_out(folding)]
    key = digest(about, contents, folding.part.astype(np.int64))
    if key in _recent:
        return _recent[key]
    kept = recall(cache, "spectra", key)
    found = None if kept is None else _unpacked(kept.arrays, len(folding.held_by) + 1, rows.dim)
    if found is None:
        found = _computed(rows, folding, None)
        arrays = {
            f"{i}.{field.name}": np.asarray(getattr(spectrum, field.name), np.float64)
            for i, spectrum in enumerate(found)
            for field in fields(Spectrum)
        }
        size = sum(array.nbytes for array in arrays.values())
        if lasting and size <= max(rows.nbytes, SMALL):
            keep(cache, "spectra", key, arrays, {"layers": list(layers), "rows": len(rows)})
    _recent.clear()
    _recent[key] = found
    return found


def _left_out(folding: Folding) -> list[int | None]:
    """The part that each fold leaves out, then the one that the final head does."""
    return [*range(len(folding.held_by)), 0 if folding.spared else None]


def _computed(rows: Rows, folding: Folding, weights: np.ndarray | None) -> list[Spectrum]:
    if folding.trains is not None:
        return [_of(rows, some, weights) for some in [*folding.trains, folding.final]]
    if len(rows) < rows.dim:  # then their n x n products are the smaller problem
        chosen = [
            np.flatnonzero(folding.part != (-1 if part is None else part))
            for part in _left_out(folding)
        ]
        return [_of(rows, some, weights) for some in chosen]
    moments = Moments.of(rows, folding.part, int(folding.part.max()) + 1, weights)
    scaling = WHOLE if rows.rooted else COLUMNS
    return [Spectrum.of_gram(*moments.without(part), scaling) for part in _left_out(folding)]


def _of(rows: Rows, some: np.ndarray, weights: np.ndarray | None) -> Spectrum:
    few, each = len(rows) < rows.dim, None if weights is None else weights[some]
    if few:
        return Spectrum.of_rows(rows.at(some), each)
    return Spectrum.of_gram(*Moments.of(rows.at(some), weights=each).without())


def _unpacked(arrays: Mapping[str, np.ndarray], n: int, dim: int) -> list[Spectrum] | None:
    """What was kept, or None if it is not what it should be."""
    names, found = [field.name for field in fields(Spectrum)], []
    if set(arrays) != {f"{i}.{name}" for i in range(n) for name in names} or not _finite(arrays):
        return None
    for i in range(n):
        spectrum = Spectrum(**{name: arrays[f"{i}.{name}"] for name in names})  # type: ignore[arg-type]
        size = spectrum.values.shape[:1]
        shapes = {"count": (), "mean": (dim,), "scale": (dim,), "values": size}
        if {k: v.shape for k, v in vars(spectrum).items()} != shapes | {"vectors": (dim, *size)}:
            return None
        if not (spectrum.count > 0 and (spectrum.scale > 0).all() and (spectrum.values > 0).all()):
            return None
        found.append(spectrum)
    return found


def _finite(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values())
