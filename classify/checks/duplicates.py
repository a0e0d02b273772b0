"""Find test images that duplicate a training or validation image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from classify.data.features import FeatureRows, resolve_layers
from classify.data.near_copies import (
    MAX_COPY_DISTANCE,
    MAX_EXPECTED,
    MAX_SAME_DISTANCE,
    expected_by_chance,
)
from classify.data.tasks import Task
from classify.labels.folders import TEST
from featurize.cache.reader import FeatureCache

MAX_MULTIPLICATIONS = 2e12  # of features, which take a minute or two


@dataclass(frozen=True)
class DuplicatePair:
    """A test image and the most similar training or validation image.

    Attributes
    ----------
    row_train, row_test : int
        Rows of the cache. `row_train` may be a validation image.
    cosine : float
        Cosine similarity of the standardised features; 1 for the same bytes.
    same_bytes, same_label : bool
        Whether both images have the same bytes and the same label.
    expected : float
        Expected number of test images with an image as near by chance; 0 for the same bytes.
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
    """Find test images that duplicate a training or validation image.

    Images are compared first by the hash of their bytes, then by the cosine similarity of their
    features, standardised by statistics of the training and validation images. What distance is too
    small depends on the backbone and on the images: handwritten digits are alike by nature. So the
    nearest neighbour of each test image is compared with its next ten, see `expected_by_chance`. A
    duplicate is a pair so near that at most one test image in all is expected to have such a
    neighbour by chance, and whose cosine is at least 0.75: an image that resembles another and
    nothing else is no copy of it. Images nearly equal in every feature, such as blank ones, are
    always duplicates.

    Measured with 40 duplicates of each kind planted in CIFAR-10 (32 x 32 pixels; 10,000 training
    and validation images, 2,000 test images) and the last layer of `seedling`. It found 100 % of
    PNG copies, of copies with another brightness and of JPEG copies of quality 85; 90 % of quality
    50; 98 % of copies resized by four pixels; 100 % of copies cropped by one pixel at each edge,
    73 % by two; 13 % of mirrored copies. Of 18 further pairs, 13 were near-duplicates in CIFAR-10
    itself, the others similar images. On 1,797 handwritten digits, five random splits gave 0, 0, 1,
    0 and 1 false pairs. SqueezeNet, whose input is these images enlarged sevenfold, found 35 to
    95 % of copies of low quality, resized, cropped or mirrored, and 1 of 40 enlarged to 64 pixels.

    Parameters
    ----------
    cache : FeatureCache
        The cache of the task's images.
    task : Task
        Rows, labels and split.
    layers : str or sequence of str, optional
        Layers to compare; several are joined. The deepest if not given, which did best alone and no
        worse than with others.

    Returns
    -------
    list of DuplicatePair
        At most one for each test image; the same bytes first, then by `expected`, ascending.

    Raises
    ------
    RowNotReadyError
        If an image has no features.
    UnknownLayerError
        If the cache lacks a layer.

    Notes
    -----
    Every test image is compared with every other image in blocks, which takes 200 MB for any number
    of images and 18 s on one core for 50,000 x 10,000 images and 512 features. Beyond 2e12
    multiplications (50,000 x 80,000 images, over two minutes) the features of a random sample of
    test images are compared, drawn with a fixed seed; the bytes of all are. `count_compared` gives
    the size of the sample.
    """
    outside, test = np.flatnonzero(task.split != TEST), np.flatnonzero(task.split == TEST)
    if not len(outside) or not len(test):
        return []
    hash_matches = _match_by_hash(cache, task, outside, test)
    names = resolve_layers(cache, layers)
    sample = test[_sample_positions(len(test), count_compared(cache, task, layers=layers))]
    nearest, gap, expected = expected_by_chance(
        FeatureRows.from_cache(cache, names, task.rows[outside]),
        FeatureRows.from_cache(cache, names, task.rows[sample]),
    )
    expected *= len(test) / len(sample)
    pairs = [(outside[a], b, 1.0, True, 0.0) for b, a in hash_matches.items()]
    is_near = (expected <= MAX_EXPECTED) & (gap <= MAX_COPY_DISTANCE)
    for i in np.flatnonzero(is_near | (gap <= MAX_SAME_DISTANCE)):
        if sample[i] not in hash_matches:
            pairs.append((outside[nearest[i]], sample[i], 1 - gap[i], False, expected[i]))
    row, y = task.rows, task.y
    duplicates = [
        DuplicatePair(
            int(row[a]), int(row[b]), float(cosine), same, bool(y[a] == y[b]), float(chance)
        )
        for a, b, cosine, same, chance in pairs
    ]
    return sorted(
        duplicates,
        key=lambda pair: (not pair.same_bytes, pair.expected, -pair.cosine, pair.row_test),
    )


def count_compared(
    cache: FeatureCache, task: Task, *, layers: str | Sequence[str] | None = None
) -> int:
    """Count the test images whose features `find_duplicates` compares.

    Parameters
    ----------
    cache, task, layers
        As in `find_duplicates`.

    Returns
    -------
    int
        All test images, or fewer if they would need more than 2e12 multiplications.
    """
    n_test = int((task.split == TEST).sum())
    dim = sum(cache.layer(name).dim for name in resolve_layers(cache, layers))
    max_compared = int(MAX_MULTIPLICATIONS // max(1, dim * (len(task.rows) - n_test)))
    return min(n_test, max(1, max_compared))


def _sample_positions(n: int, m: int) -> np.ndarray:
    if m >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, m, replace=False))


def _match_by_hash(
    cache: FeatureCache, task: Task, outside: np.ndarray, test: np.ndarray
) -> dict[int, int]:
    """Map positions of test images to the first position in `outside` with the same bytes."""
    contents = cache.column("sha256", task.rows)
    index_of_hash: dict[bytes, int] = {}
    for i, position in enumerate(outside):
        index_of_hash.setdefault(contents[position].tobytes(), i)
    matches = ((int(p), index_of_hash.get(contents[p].tobytes())) for p in test)
    return {position: i for position, i in matches if i is not None}
