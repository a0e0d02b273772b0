"""Near-copies: images whose features are nearer to each other than chance explains.

Distances are 1 - cosine of standardised features, called gaps.
"""

from collections.abc import Iterator

import numpy as np

from classify.data.features import FeatureRows

N_NEIGHBOURS = 11  # per image: the nearest, and ten that show the local density
MAX_EXPECTED = 1.0  # pairs that are as near by chance
# Beyond this gap an image is no copy, however far its other neighbours are.
MAX_COPY_DISTANCE = 0.25
MIN_DIMENSIONS = 4.0  # in fewer dimensions every image has near neighbours
# At most this share of images may have so near a neighbour by chance. It matters in small sets,
# where an image's tenth neighbour may be of another class.
MAX_CHANCE_SHARE = 1e-4
MAX_SAME_DISTANCE = 1e-5  # up to this gap it is the same image in another file
MIN_DISTANCE = 1e-6  # the precision of float32 cosines
MAX_SPREAD_ROWS = 4096  # rows that the trimmed spread is computed from
TEST_BLOCK, TRAIN_BLOCK = 2048, 4096  # rows; a block of cosines takes 32 MB


def expected_by_chance(
    train: FeatureRows, test: FeatureRows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure for each test image how surprisingly near its nearest training image is.

    Where points are uniform in d dimensions, the k points nearer than the (k + 1)-th have distances
    whose d-th powers are uniform between 0 and that of the (k + 1)-th. So the nearest is within a
    share x of that distance with probability 1 - (1 - x^d)^k. Times the number of test images, this
    is how many of them are expected to have a neighbour that near. d is estimated from the farther
    half of the k, over all test images (E. Levina and P. J. Bickel, 2004, "Maximum likelihood
    estimation of intrinsic dimension", NIPS). The nearer half may hold copies and is not used.

    Parameters
    ----------
    train : FeatureRows
        n training images.
    test : FeatureRows
        m test images. k is 10, or n - 1 where n is under 11.

    Returns
    -------
    nearest : int array of shape (m,)
        Position of the nearest training image.
    gap : float64 array of shape (m,)
        1 - cosine to it.
    expected : float64 array of shape (m,)
        Number of test images that are expected to have so near a neighbour by chance. Infinite
        where n is under 5, which is too few to estimate it.
    """
    nearest, gaps = _find_neighbours(train, test, _compute_spread(train))
    k = gaps.shape[1] - 1
    if k < 4:
        return nearest, gaps[:, 0], np.full(len(nearest), np.inf)
    power, gaps = _estimate_half_dimension(gaps), np.maximum(gaps, MIN_DISTANCE)
    share = (gaps[:, 0] / gaps[:, k]) ** power
    expected = -len(nearest) * np.expm1(k * np.log1p(-np.minimum(share, 1 - 1e-12)))
    return nearest, gaps[:, 0], expected


def _estimate_half_dimension(gaps: np.ndarray) -> float:
    """Estimate half the dimension from the gaps (m, k + 1) of the nearest neighbours."""
    k, gaps = gaps.shape[1] - 1, np.maximum(gaps, MIN_DISTANCE)
    # A squared distance is twice the gap, so this is half the dimension. Minus the logarithms of k
    # uniform numbers: the i-th smallest has the mean 1/k + 1/(k-1) + ..., with i terms.
    half = k // 2
    expected = np.cumsum(1 / np.arange(k, k - half, -1.0)).sum()
    measured = np.log(gaps[:, k:] / gaps[:, k - half : k]).sum(axis=1).mean()
    return float(expected / measured) if measured > 0 else np.inf


def find_near_copies(rows: FeatureRows) -> np.ndarray:
    """Link images that are so near each other that at most one pair in all is by chance.

    The criterion is that of `expected_by_chance`, with every image compared with all others. Below
    10,000 images the limit is stricter, a chance of 1e-4 for each image: there an image's tenth
    neighbour may be of another class, far away. In sets of about ten copies or more an image is
    linked only to those that agree in every feature, because such a set looks like a dense region.
    Features of under four dimensions give no links.

    Parameters
    ----------
    rows : FeatureRows
        n images.

    Returns
    -------
    int64 array of shape (p, 2)
        Positions, the lower first. Each copy is linked to its nearest neighbour, and to the first
        image within its limit.
    """
    n = len(rows)
    if n < 2:
        return np.zeros((0, 2), np.int64)
    spread = _compute_trimmed_spread(rows)
    nearest, gaps = _find_neighbours(rows, rows, spread, exclude_self=True)
    k = gaps.shape[1] - 1
    limit = np.full(n, MAX_SAME_DISTANCE)
    power = _estimate_half_dimension(gaps) if k >= 4 else np.inf
    if power < MIN_DIMENSIONS / 2:
        return np.zeros((0, 2), np.int64)
    if power < np.inf:
        # The gap at which the expected number of images is `MAX_EXPECTED`.
        ratio = -np.expm1(np.log1p(-min(MAX_EXPECTED / n, MAX_CHANCE_SHARE)) / k)
        chance_gap = np.maximum(gaps[:, k], MIN_DISTANCE) * ratio ** (1 / power)
        limit = np.maximum(limit, np.minimum(chance_gap, MAX_COPY_DISTANCE))
    copies = np.flatnonzero(gaps[:, 0] <= limit)
    if not len(copies):
        return np.zeros((0, 2), np.int64)
    lowest_copy = nearest[copies]
    for start, block in _iter_unit_vectors(rows.subset(copies), *spread, TEST_BLOCK):
        part = slice(start, start + len(block))
        for other_start, other_block in _iter_unit_vectors(rows, *spread, TRAIN_BLOCK):
            is_close = 1 - block @ other_block.T <= limit[copies[part], None]
            lowest_in_block = np.where(
                is_close.any(axis=1), other_start + is_close.argmax(axis=1), n
            )
            lowest_copy[part] = np.minimum(lowest_copy[part], lowest_in_block)
    pairs = np.stack(
        [np.repeat(copies, 2), np.stack([nearest[copies], lowest_copy], axis=1).ravel()], axis=1
    )
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]], np.int64)


def link_beyond_chance(rows: FeatureRows, false_share: float) -> np.ndarray:
    """Link images to those near them, of which at most a share is so near by chance.

    Unlike `find_near_copies`, which allows one pair in all, this finds more where many images have
    near ones: the limit follows from how many there are (Y. Benjamini and Y. Hochberg, 1995,
    "Controlling the False Discovery Rate", Journal of the Royal Statistical Society B 57). So crops
    and frames of the same scene are found, if most images have some.

    Parameters
    ----------
    rows : FeatureRows
        n images.
    false_share : float
        Share of the linked images that may be linked by chance.

    Returns
    -------
    int64 array of shape (p, 2)
        Positions of each image and of those near it, at most ten.
    """
    n = len(rows)
    if n < 2:
        return np.zeros((0, 2), np.int64)
    nearest, gaps = _list_neighbours(rows, _compute_trimmed_spread(rows))
    k = gaps.shape[1] - 1
    power = _estimate_half_dimension(gaps) if k >= 4 else np.inf
    if not MIN_DIMENSIONS / 2 <= power < np.inf:
        return np.zeros((0, 2), np.int64)
    gaps = np.maximum(gaps, MIN_DISTANCE)
    share = np.minimum((gaps[:, :k] / gaps[:, k:]) ** power, 1 - 1e-12)
    p_values = -np.expm1(k * np.log1p(-share))  # of a farther neighbour, too high
    ordered = np.sort(p_values[:, 0])
    is_below = ordered <= false_share * np.arange(1, n + 1) / n
    if not is_below.any():
        return np.zeros((0, 2), np.int64)
    limit = ordered[int(np.flatnonzero(is_below)[-1])]
    image, place = np.nonzero((p_values <= limit) & (gaps[:, :k] <= MAX_COPY_DISTANCE))
    return np.stack([image, nearest[image, place]], axis=1).astype(np.int64)


def _list_neighbours(
    rows: FeatureRows, spread: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """List the 11 nearest other images (n, 11) of each image, and their rising gaps."""
    count = min(N_NEIGHBOURS, len(rows) - 1)
    nearest, gaps = np.empty((len(rows), count), np.intp), np.empty((len(rows), count))
    for start, block in _iter_unit_vectors(rows, *spread, TEST_BLOCK):
        part = slice(start, start + len(block))
        best = np.full((len(block), count), -2.0, np.float32)
        index = np.zeros((len(block), count), np.intp)
        for other_start, other_block in _iter_unit_vectors(rows, *spread, TRAIN_BLOCK):
            cosine = block @ other_block.T
            stop = min(start + len(block), other_start + len(other_block))
            own = np.arange(max(start, other_start), stop)
            cosine[own - start, own - other_start] = -2
            cosine = np.concatenate([best, cosine], axis=1)
            others = np.arange(other_start, other_start + len(other_block))
            numbers = np.concatenate(
                [index, np.broadcast_to(others, (len(block), len(others)))], axis=1
            )
            top = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
            best = np.take_along_axis(cosine, top, axis=1)
            index = np.take_along_axis(numbers, top, axis=1)
        order = np.argsort(-best, axis=1, kind="stable")
        gaps[part] = 1 - np.take_along_axis(best, order, axis=1).astype(np.float64)
        nearest[part] = np.take_along_axis(index, order, axis=1)
    return nearest, gaps


def _find_neighbours(
    train: FeatureRows,
    test: FeatureRows,
    spread: tuple[np.ndarray, np.ndarray],
    *,
    exclude_self: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest training image (m,), and the rising gaps (m, k + 1) of the 11 nearest.

    With `exclude_self` both are the same images, and none is its own neighbour.
    """
    count = min(N_NEIGHBOURS, len(train) - exclude_self)
    mean, scale = spread
    nearest, gaps = np.empty(len(test), np.intp), np.empty((len(test), count))
    for start, block in _iter_unit_vectors(test, mean, scale, TEST_BLOCK):
        part = slice(start, start + len(block))
        largest = np.full((len(block), count), -2, np.float32)
        nearest_cosine = np.full(len(block), -2, np.float32)
        nearest_index = np.zeros(len(block), np.intp)
        for other_start, other_block in _iter_unit_vectors(train, mean, scale, TRAIN_BLOCK):
            cosine = block @ other_block.T
            if exclude_self:
                own = np.arange(
                    max(start, other_start), min(start + len(block), other_start + len(other_block))
                )
                cosine[own - start, own - other_start] = -2
            column = cosine.argmax(axis=1)
            top_cosine = cosine[np.arange(len(column)), column]
            is_nearer = top_cosine > nearest_cosine
            nearest_index = np.where(is_nearer, other_start + column, nearest_index)
            nearest_cosine = np.maximum(top_cosine, nearest_cosine)
            if cosine.shape[1] > count:
                cosine = np.partition(cosine, -count, axis=1)[:, -count:]
            largest = np.sort(np.concatenate([largest, cosine], axis=1), axis=1)[:, -count:]
        nearest[part], gaps[part] = nearest_index, 1 - largest[:, ::-1].astype(np.float64)
    return nearest, gaps


def _compute_spread(rows: FeatureRows) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and scale of each feature.

    The scale is the deviation, with the average variance over features added to the feature's own.
    Without it, rounding errors of nearly constant features would count as much as the other
    features.
    """
    sums, squares = np.zeros(rows.dim), np.zeros(rows.dim)
    # Sums of squares about a row: about 0 they could cancel.
    origin = rows.subset(np.arange(1)).to_array()[0].astype(np.float64)
    for _, block in rows.iter_blocks():
        centred = block - origin
        sums += centred.sum(axis=0)
        squares += (centred**2).sum(axis=0)
    mean = sums / len(rows)
    variance = np.maximum(squares / len(rows) - mean**2, 0)
    scale = np.sqrt(variance + variance.mean())
    return mean + origin, np.where(scale > 0, scale, np.inf)


def _compute_trimmed_spread(rows: FeatureRows) -> tuple[np.ndarray, np.ndarray]:
    """Compute the spread of the middle nine tenths, which no single row can move."""
    sample = np.linspace(0, len(rows) - 1, min(MAX_SPREAD_ROWS, len(rows))).astype(np.intp)
    values = np.sort(rows.subset(sample).to_array().astype(np.float64), axis=0)
    n_trimmed = len(values) // 20
    values = values[n_trimmed : len(values) - n_trimmed]
    variance = values.var(axis=0)
    scale = np.sqrt(variance + variance.mean())
    return values.mean(axis=0), np.where(scale > 0, scale, np.inf)


def _iter_unit_vectors(
    rows: FeatureRows, mean: np.ndarray, scale: np.ndarray, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the start of each block of `size` rows, and its standardised rows of length 1."""
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    for start in range(0, len(rows), size):
        block = rows.subset(np.arange(start, min(start + size, len(rows)))).to_array()
        block -= shift
        block *= factor
        length = np.sqrt(np.einsum("nd,nd->n", block, block))
        block /= np.maximum(length, 1e-30)[:, None]
        yield start, block
