"""Twins: the same or nearly the same image among those learnt from and those tested on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows, resolve_layers
from classify.data.folder_labels import TEST
from classify.data.near_copies import MAX_EXPECTED, MAX_SAME_DISTANCE, expected_by_chance
from classify.data.tasks import Task
from featurize.cache.reader import FeatureCache

MAX_MULTIPLICATIONS = 2e12  # multiplications: a minute or two


@dataclass(frozen=True)
class DuplicatePair:
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


def find_duplicates(
    cache: FeatureCache, task: Task, *, layers: str | Sequence[str] | None = None
) -> list[DuplicatePair]:
    """Find test images that are, or nearly are, among those that are learnt from or chosen by.

    First by the hash of their bytes, then by the cosine of their features, centred and scaled by
    the images outside the test. How near is too near depends on the backbone and on the images:
    handwritten digits are alike by nature. So each test image's nearest neighbour is held against
    its next ten, see `expected_by_chance`. A duplicate is a pair so near that at most one test
    image in all is expected to have such a one by chance. (Images nearly equal in every feature,
    like blank ones, are duplicates always.)

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
    looked at, drawn with a fixed seed; the bytes of all are. `count_compared` says how many.
    """
    outside, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    if not len(outside) or not len(test):
        return []
    first = _match_by_hash(cache, task, outside, test)
    names = resolve_layers(cache, layers)
    some = test[_sample_positions(len(test), count_compared(cache, task, layers=layers))]
    nearest, gap, expected = expected_by_chance(
        FeatureRows.from_cache(cache, names, task.rows[outside]),
        FeatureRows.from_cache(cache, names, task.rows[some]),
    )
    expected *= len(test) / len(some)
    pairs = [(outside[a], b, 1.0, True, 0.0) for b, a in first.items()]
    for i in np.flatnonzero((expected <= MAX_EXPECTED) | (gap <= MAX_SAME_DISTANCE)):
        if some[i] not in first:
            pairs.append((outside[nearest[i]], some[i], 1 - gap[i], False, expected[i]))
    row, y = task.rows, task.y
    found = [
        DuplicatePair(
            int(row[a]), int(row[b]), float(cosine), same, bool(y[a] == y[b]), float(chance)
        )
        for a, b, cosine, same, chance in pairs
    ]
    return sorted(found, key=lambda t: (not t.same_bytes, t.expected, -t.cosine, t.row_test))


def count_compared(
    cache: FeatureCache, task: Task, *, layers: str | Sequence[str] | None = None
) -> int:
    """How many test images `find_duplicates` compares: all, up to 2e12 multiplications."""
    test = int((task.split == TEST).sum())
    dim = sum(cache.layer(name).dim for name in resolve_layers(cache, layers))
    most = int(MAX_MULTIPLICATIONS // max(1, dim * (len(task.rows) - test)))
    return min(test, max(1, most))


def _sample_positions(n: int, m: int) -> np.ndarray:
    if m >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, m, replace=False))


def _match_by_hash(
    cache: FeatureCache, task: Task, outside: np.ndarray, test: np.ndarray
) -> dict[int, int]:
    """By position of a test image: which of `outside` has the same bytes, the first of them."""
    contents = cache.column("sha256")[task.rows]
    position: dict[bytes, int] = {}
    for i, at in enumerate(outside):
        position.setdefault(contents[at].tobytes(), i)
    found = ((int(at), position.get(contents[at].tobytes())) for at in test)
    return {at: i for at, i in found if i is not None}
