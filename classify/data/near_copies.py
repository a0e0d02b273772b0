"""How near is too near: images whose features are nearer than chance would have them."""

from collections.abc import Iterator

import numpy as np

from classify.data.features import FeatureRows

N_NEIGHBOURS = 11  # of each image: the nearest, nine or ten that say how dense it is there
MAX_EXPECTED = 1.0  # so many pairs as near are expected by chance
MAX_COPY_DISTANCE = (
    0.25  # one less the cosine, beyond which an image is no copy, however far the others are
)
MIN_DIMENSIONS = 4.0  # dimensions, under which something is near everything
MAX_CHANCE_SHARE = (
    1e-4  # by chance, so few images have another so near: in small sets classes lie apart
)
MAX_SAME_DISTANCE = 1e-5  # one less the cosine, up to which it is the same image in another file
MIN_DISTANCE = 1e-6  # float32 knows cosines no better
MAX_SPREAD_ROWS = 4096  # rows that the spread is taken from
TEST_BLOCK, TRAIN_BLOCK = 2048, 4096  # their cosines take 32 MB


def expected_by_chance(
    train: FeatureRows, test: FeatureRows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How surprisingly near the nearest training image is, for each test image.

    Where points lie evenly in d dimensions, the k of them that are nearer than the (k + 1)-th have
    distances whose d-th powers are uniform between 0 and that one's: the nearest is within a share
    x of it with probability 1 - (1 - x^d)^k. Times the number of test images, that is how many are
    expected to have one so near. d is estimated from the farther half of the k, over all test
    images (E. Levina and P. J. Bickel, 2004, "Maximum likelihood estimation of intrinsic
    dimension", NIPS); the nearer half may be copies themselves, and so does no harm.

    Parameters
    ----------
    train, test : FeatureRows
        n and m of them; k is 10, or less where n is under 11.

    Returns
    -------
    nearest : int array of shape (m,)
        Positions among the training rows.
    gap : float64 array of shape (m,)
        One less the cosine.
    expected : float64 array of shape (m,)
        Infinite where n is under 5: too few to say.
    """
    near, gaps = _find_neighbours(train, test, _compute_spread(train))
    k = gaps.shape[1] - 1
    if k < 4:
        return near, gaps[:, 0], np.full(len(near), np.inf)
    power, gaps = _estimate_half_dimension(gaps), np.maximum(gaps, MIN_DISTANCE)
    share = (gaps[:, 0] / gaps[:, k]) ** power
    return near, gaps[:, 0], -len(near) * np.expm1(k * np.log1p(-np.minimum(share, 1 - 1e-12)))


def _estimate_half_dimension(gaps: np.ndarray) -> float:
    """Half the dimension, from the gaps (m, k + 1) of the nearest."""
    k, gaps = gaps.shape[1] - 1, np.maximum(gaps, MIN_DISTANCE)
    # A squared distance is twice the gap, so this is half the dimension. Logarithms of uniform
    # numbers: the i-th least of k is expected to be the sum of 1/k, 1/(k-1), ..., i terms.
    half = k // 2
    mean = np.cumsum(1 / np.arange(k, k - half, -1.0)).sum()
    seen = np.log(gaps[:, k:] / gaps[:, k - half : k]).sum(axis=1).mean()
    return float(mean / seen) if seen > 0 else np.inf


def find_near_copies(rows: FeatureRows) -> np.ndarray:
    """Link images that are so near each other that at most one pair in all is so by chance.

    As `expected_by_chance` has it, every image being held against all others. Of fewer than 10,000
    images it is rather one pair in so many: there an image's tenth neighbour may be of another
    class, far away. An image has several such neighbours where several are copies of it. Those of
    ten and more it cannot tell from images that are alike by nature, unless they are the same in
    every feature. Features of under four dimensions tell no copies.

    Parameters
    ----------
    rows : FeatureRows
        n of them.

    Returns
    -------
    int64 array of shape (p, 2)
        Positions, the lower first. Each of some copies is linked to the first of those near it.
    """
    n = len(rows)
    if n < 2:
        return np.zeros((0, 2), np.int64)
    spread = _compute_trimmed_spread(rows)
    near, gaps = _find_neighbours(rows, rows, spread, exclude_self=True)
    k = gaps.shape[1] - 1
    limit = np.full(n, MAX_SAME_DISTANCE)
    power = _estimate_half_dimension(gaps) if k >= 4 else np.inf
    if power < MIN_DIMENSIONS / 2:
        return np.zeros((0, 2), np.int64)
    if power < np.inf:
        # The gap at which the expected number is `MAX_EXPECTED`, solved for.
        share = -np.expm1(np.log1p(-min(MAX_EXPECTED / n, MAX_CHANCE_SHARE)) / k)
        far = np.maximum(gaps[:, k], MIN_DISTANCE) * share ** (1 / power)
        limit = np.maximum(limit, np.minimum(far, MAX_COPY_DISTANCE))
    some = np.flatnonzero(gaps[:, 0] <= limit)
    if not len(some):
        return np.zeros((0, 2), np.int64)
    first = near[some]
    for start, ours in _iter_unit_vectors(rows.subset(some), *spread, TEST_BLOCK):
        part = slice(start, start + len(ours))
        for begin, theirs in _iter_unit_vectors(rows, *spread, TRAIN_BLOCK):
            close = 1 - ours @ theirs.T <= limit[some[part], None]
            lowest = np.where(close.any(axis=1), begin + close.argmax(axis=1), n)
            first[part] = np.minimum(first[part], lowest)
    pairs = np.stack([np.repeat(some, 2), np.stack([near[some], first], axis=1).ravel()], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]], np.int64)


def _find_neighbours(
    train: FeatureRows,
    test: FeatureRows,
    spread: tuple[np.ndarray, np.ndarray],
    *,
    exclude_self: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each test image the nearest (m,), and 1 - cosine of the 11 nearest, rising (m, k + 1).

    Where they are the `exclude_self` images, none is its own neighbour.
    """
    count = min(N_NEIGHBOURS, len(train) - exclude_self)
    mean, scale = spread
    near, gaps = np.empty(len(test), np.intp), np.empty((len(test), count))
    for start, ours in _iter_unit_vectors(test, mean, scale, TEST_BLOCK):
        part = slice(start, start + len(ours))
        best = np.full((len(ours), count), -2, np.float32)
        first, which = np.full(len(ours), -2, np.float32), np.zeros(len(ours), np.intp)
        for begin, theirs in _iter_unit_vectors(train, mean, scale, TRAIN_BLOCK):
            cosine = ours @ theirs.T
            if exclude_self:
                own = np.arange(max(start, begin), min(start + len(ours), begin + len(theirs)))
                cosine[own - start, own - begin] = -2
            at = cosine.argmax(axis=1)
            top = cosine[np.arange(len(at)), at]
            which, first = np.where(top > first, begin + at, which), np.maximum(top, first)
            if cosine.shape[1] > count:
                cosine = np.partition(cosine, -count, axis=1)[:, -count:]
            best = np.sort(np.concatenate([best, cosine], axis=1), axis=1)[:, -count:]
        near[part], gaps[part] = which, 1 - best[:, ::-1].astype(np.float64)
    return near, gaps


def _compute_spread(rows: FeatureRows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature: the deviation, with the average variance added to its own.

    Without that, the rounding errors of features that hardly vary would count like the others.
    """
    total, squares = np.zeros(rows.dim), np.zeros(rows.dim)
    origin = (
        rows.subset(np.arange(1)).to_array()[0].astype(np.float64)
    )  # so that squares do not cancel
    for _, block in rows.iter_blocks():
        moved = block - origin
        total += moved.sum(axis=0)
        squares += (moved**2).sum(axis=0)
    mean = total / len(rows)
    variance = np.maximum(squares / len(rows) - mean**2, 0)
    scale = np.sqrt(variance + variance.mean())
    return mean + origin, np.where(scale > 0, scale, np.inf)


def _compute_trimmed_spread(rows: FeatureRows) -> tuple[np.ndarray, np.ndarray]:
    """As `_compute_spread`, of the middle nine tenths of some rows: no one row moves it."""
    some = np.linspace(0, len(rows) - 1, min(MAX_SPREAD_ROWS, len(rows))).astype(np.intp)
    values = np.sort(rows.subset(some).to_array().astype(np.float64), axis=0)
    out = len(values) // 20
    values = values[out : len(values) - out]
    variance = values.var(axis=0)
    scale = np.sqrt(variance + variance.mean())
    return values.mean(axis=0), np.where(scale > 0, scale, np.inf)


def _iter_unit_vectors(
    rows: FeatureRows, mean: np.ndarray, scale: np.ndarray, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Standardised rows of length 1, float32, so many at a time, and where each block starts."""
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    for start in range(0, len(rows), size):
        block = rows.subset(np.arange(start, min(start + size, len(rows)))).to_array()
        block -= shift
        block *= factor
        length = np.sqrt(np.einsum("nd,nd->n", block, block))
        block /= np.maximum(length, 1e-30)[:, None]
        yield start, block
