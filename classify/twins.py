"""Twins: the same or nearly the same image among those learnt from and those tested on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from classify.features import Rows, layer_names
from classify.labels import TEST
from classify.tasks import Task
from featurize.cache import FeatureCache

NEIGHBOURS = 11  # of each test image: the nearest, nine or ten that say how dense it is there
CHANCE = 1.0  # so many pairs as near are expected by chance
SAME = 1e-5  # one less the cosine, up to which it is the same image in another file
FLOOR = 1e-6  # float32 knows cosines no better
TEST_BLOCK, TRAIN_BLOCK = 2048, 4096  # their cosines take 32 MB
MAX_WORK = 2e12  # multiplications: a minute or two


@dataclass(frozen=True)
class Twin:
    """A test image and the image outside the test that it resembles most.

    Attributes
    ----------
    row_train, row_test : int
        Rows of the cache.
    cosine : float
        Of the features, centred and scaled; 1 for the same bytes.
    same_bytes : bool
    same_label : bool
    expected : float
        How many test images would have an image as near by chance; 0 for the same bytes.
    """

    row_train: int
    row_test: int
    cosine: float
    same_bytes: bool
    same_label: bool
    expected: float


def twins(
    cache: FeatureCache, task: Task, *, layers: str | Sequence[str] | None = None
) -> list[Twin]:
    """Find test images that are, or nearly are, among those that are learnt from or chosen by.

    First by the hash of their bytes, then by the cosine of their features, centred and scaled by
    the images outside the test. How near is too near depends on the backbone and on the images:
    handwritten digits are alike by nature. So each test image's nearest neighbour is held against
    its next ten, see `surprise`. A twin is a pair so near that at most one test image in all is
    expected to have such a one by chance. (Images nearly equal in every feature, like blank ones,
    are twins always.)

    Measured with 40 twins of each kind planted in CIFAR-10 (32 x 32 pixels; 10,000 images outside
    the test, 2,000 in it) and the last layer of `seedling`: found were all PNG copies, all with
    other brightness and all saved again as JPEG of quality 85, 90 % of those of quality 50, 98 % of
    those resized by four pixels, 100 % of those that lost one pixel at each edge, 73 % two, 13 % of
    mirrored ones. Of 18 other pairs, 13 were near-copies that CIFAR-10 has of its own, the others
    alike. On 1,797 handwritten digits, five random splits gave 0, 0, 1, 0 and 1 false pairs.
    SqueezeNet, which sees those 32 pixels enlarged sevenfold, found 35 to 95 % of those saved at
    low quality, resized, cropped or mirrored, and one of 40 enlarged to 64 pixels.

    Parameters
    ----------
    cache : FeatureCache
    task : Task
    layers : str or sequence of str, optional
        Several are joined; the deepest if not given, which did best by itself and no worse than
        with others.

    Returns
    -------
    list of Twin
        At most one for a test image; the same bytes first, then the least expected.

    Raises
    ------
    RowNotReady, UnknownLayer

    Notes
    -----
    Every test image is multiplied with every other, block by block: 200 MB for any number of them;
    18 s on one core for 50,000 x 10,000 images and 512 features, and in proportion. Beyond 2e12
    multiplications (50,000 x 80,000 images, over two minutes) as many test images as fit are
    looked at, drawn with a fixed seed; the bytes of all are. `looked_at` says how many.
    """
    outside, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    if not len(outside) or not len(test):
        return []
    first = _same_bytes(cache, task, outside, test)
    names = layer_names(cache, layers)
    some = test[_sample(len(test), looked_at(cache, task, layers=layers))]
    nearest, gap, expected = surprise(
        Rows.of_cache(cache, names, task.rows[outside]),
        Rows.of_cache(cache, names, task.rows[some]),
    )
    expected *= len(test) / len(some)
    pairs = [(outside[a], b, 1.0, True, 0.0) for b, a in first.items()]
    for i in np.flatnonzero((expected <= CHANCE) | (gap <= SAME)):
        if some[i] not in first:
            pairs.append((outside[nearest[i]], some[i], 1 - gap[i], False, expected[i]))
    row, y = task.rows, task.y
    found = [
        Twin(int(row[a]), int(row[b]), float(cosine), same, bool(y[a] == y[b]), float(chance))
        for a, b, cosine, same, chance in pairs
    ]
    return sorted(found, key=lambda t: (not t.same_bytes, t.expected, -t.cosine, t.row_test))


def looked_at(cache: FeatureCache, task: Task, *, layers: str | Sequence[str] | None = None) -> int:
    """How many test images' features `twins` looks at: all, up to 2e12 multiplications."""
    test = int((task.split == TEST).sum())
    dim = sum(cache.layer(name).dim for name in layer_names(cache, layers))
    most = int(MAX_WORK // max(1, dim * (len(task.rows) - test)))
    return min(test, max(1, most))


def _sample(n: int, m: int) -> np.ndarray:
    if m >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, m, replace=False))


def _same_bytes(
    cache: FeatureCache, task: Task, outside: np.ndarray, test: np.ndarray
) -> dict[int, int]:
    """By position of a test image: which of `outside` has the same bytes, the first of them."""
    contents = cache.column("sha256")[task.rows]
    position: dict[bytes, int] = {}
    for i, at in enumerate(outside):
        position.setdefault(contents[at].tobytes(), i)
    found = ((int(at), position.get(contents[at].tobytes())) for at in test)
    return {at: i for at, i in found if i is not None}


def surprise(train: Rows, test: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How surprisingly near the nearest training image is, for each test image.

    Where points lie evenly in d dimensions, the k of them that are nearer than the (k + 1)-th have
    distances whose d-th powers are uniform between 0 and that one's: the nearest is within a share
    x of it with probability 1 - (1 - x^d)^k. Times the number of test images, that is how many are
    expected to have one so near. d is estimated from the farther half of the k, over all test
    images (E. Levina and P. J. Bickel, 2004, "Maximum likelihood estimation of intrinsic
    dimension", NIPS); the nearer half may be copies themselves, and so does no harm.

    Parameters
    ----------
    train, test : Rows
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
    near, gaps = _neighbours(train, test)
    k = gaps.shape[1] - 1
    if k < 4:
        return near, gaps[:, 0], np.full(len(near), np.inf)
    gaps = np.maximum(gaps, FLOOR)
    # A squared distance is twice the gap, so this is half the dimension. Logarithms of uniform
    # numbers: the i-th least of k is expected to be the sum of 1/k, 1/(k-1), ..., i terms.
    half = k // 2
    mean = np.cumsum(1 / np.arange(k, k - half, -1.0)).sum()
    seen = np.log(gaps[:, k:] / gaps[:, k - half : k]).sum(axis=1).mean()
    power = mean / seen if seen > 0 else np.inf
    share = (gaps[:, 0] / gaps[:, k]) ** power
    return near, gaps[:, 0], -len(near) * np.expm1(k * np.log1p(-np.minimum(share, 1 - 1e-12)))


def _neighbours(train: Rows, test: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Of each test image the nearest (m,), and 1 - cosine of the 11 nearest, rising (m, k + 1)."""
    count = min(NEIGHBOURS, len(train))
    mean, scale = _spread(train)
    near, gaps = np.empty(len(test), np.intp), np.empty((len(test), count))
    for start, ours in _units(test, mean, scale, TEST_BLOCK):
        part = slice(start, start + len(ours))
        best = np.full((len(ours), count), -2, np.float32)
        first, which = np.full(len(ours), -2, np.float32), np.zeros(len(ours), np.intp)
        for begin, theirs in _units(train, mean, scale, TRAIN_BLOCK):
            cosine = ours @ theirs.T
            at = cosine.argmax(axis=1)
            top = cosine[np.arange(len(at)), at]
            which, first = np.where(top > first, begin + at, which), np.maximum(top, first)
            if cosine.shape[1] > count:
                cosine = np.partition(cosine, -count, axis=1)[:, -count:]
            best = np.sort(np.concatenate([best, cosine], axis=1), axis=1)[:, -count:]
        near[part], gaps[part] = which, 1 - best[:, ::-1].astype(np.float64)
    return near, gaps


def _spread(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature: the deviation, with the average variance added to its own.

    Without that, the rounding errors of features that hardly vary would count like the others.
    """
    total, squares = np.zeros(rows.dim), np.zeros(rows.dim)
    origin = rows.at(np.arange(1)).take()[0].astype(np.float64)  # so that squares do not cancel
    for _, block in rows.blocks():
        moved = block - origin
        total += moved.sum(axis=0)
        squares += (moved**2).sum(axis=0)
    mean = total / len(rows)
    variance = np.maximum(squares / len(rows) - mean**2, 0)
    scale = np.sqrt(variance + variance.mean())
    return mean + origin, np.where(scale > 0, scale, np.inf)


def _units(
    rows: Rows, mean: np.ndarray, scale: np.ndarray, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Standardised rows of length 1, float32, so many at a time, and where each block starts."""
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    for start in range(0, len(rows), size):
        block = rows.at(np.arange(start, min(start + size, len(rows)))).take()
        block -= shift
        block *= factor
        length = np.sqrt(np.einsum("nd,nd->n", block, block))
        block /= np.maximum(length, 1e-30)[:, None]
        yield start, block
