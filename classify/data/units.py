"""Units: images that belong together, such as a group of the user's or copies of one picture.

No split separates the images of a unit, and every interval counts a unit as one observation. A head
that was trained on one image of a unit has in effect seen the others.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classify.data.features import FeatureRows
from classify.data.near_copies import find_near_copies
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache
from featurize.files import hash_bytes
from featurize.images.reading import ImageFile
from featurize.sources.listing import ImageListing, read_images

MIN_UNITS_PER_IMAGE = 0.9  # from this ratio on, images are drawn one by one

VERSION = 1
MAX_MEAN_COPIES = 10  # images per unit on average; above it, near-copies are not copies
MAX_MULTIPLICATIONS = 5e10  # to look for near-copies; two or three seconds
NO_LINKS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Copies:
    """Images that are copies of each other, whatever their groups and labels.

    Attributes
    ----------
    exact : int array of shape (p, 2)
        Positions of pairs of images with the same bytes.
    near : int array of shape (q, 2)
        Positions of pairs of images that are nearly the same.
    """

    exact: np.ndarray
    near: np.ndarray

    def assign_units(self, groups: np.ndarray | None, n: int) -> tuple[np.ndarray, list[str]]:
        """Assign unit numbers to n images, and describe the copies for the user.

        Parameters
        ----------
        groups : int array of shape (n,), or None
            The user's groups.
        n : int
            Number of images.

        Returns
        -------
        unit : int array of shape (n,)
            From 0; all different where every image is its own unit.
        notices : list of str
            Empty where there are no copies.
        """
        links = np.concatenate([self.exact, self.near])
        unit = number_units(None, n, links)
        if unit is not None and len(np.unique(unit)) * MAX_MEAN_COPIES < n:
            links = self.exact
            notices = [
                f"{len(np.unique(self.near)):,} images can hardly be told from others by their "
                "features, so that only those with the same bytes count as copies"
            ]
        else:
            exact, near = np.unique(self.exact), np.setdiff1d(self.near, self.exact)
            kinds = [f"{len(exact):,} byte for byte"] if len(exact) else []
            kinds += [f"{len(near):,} nearly so"] if len(near) else []
            notices = [
                f"{len(exact) + len(near):,} images are the same as others ({', '.join(kinds)}): "
                "each set of copies counts as one, in folds, in intervals, and in a split that is "
                "drawn"
            ]
        return number_units(groups, n, links), notices if len(self.exact) + len(self.near) else []


def find_copies(cache: FeatureCache, rows: np.ndarray) -> Copies:
    """Find copies by their bytes, and near-copies by the features of the deepest layer.

    Labels are not looked at. The near-copies are stored next to the cache.

    Parameters
    ----------
    cache : FeatureCache
    rows : int array of shape (n,)
        Marked rows.

    Returns
    -------
    Copies
        Positions are among the n rows. Near-copies are those of
        `classify.data.near_copies.find_near_copies`. Where that would take more than 5e10
        multiplications (10,000 images of 512 features), there are exact copies only.

    Raises
    ------
    CallError
        If a feature is not a finite number.
    """
    contents, layer = cache.column("sha256", rows), cache.layer()
    exact = link_same_bytes(contents)
    if float(len(rows)) ** 2 * layer.dim > MAX_MULTIPLICATIONS:
        return Copies(exact, NO_LINKS)
    key = compute_digest([VERSION, layer.fingerprint], contents)
    artifact = load_artifact(cache, "copies", key)
    near = None if artifact is None else _validate_links(artifact.arrays.get("links"), len(rows))
    if near is None:
        features = FeatureRows.from_cache(cache, (layer.name,), rows)
        features.check_finite(cache)
        near = find_near_copies(features)
        save_artifact(
            cache, "copies", key, {"links": near}, {"layer": layer.name, "rows": len(rows)}
        )
    return Copies(exact, near)


def _validate_links(links: np.ndarray | None, n: int) -> np.ndarray | None:
    """Return stored links, or None if they are not valid: anyone may have written the file."""
    if links is None or links.dtype != np.int64 or links.ndim != 2 or links.shape[1] != 2:
        return None
    return links if ((links >= 0) & (links < n)).all() else None


def link_same_bytes(contents: np.ndarray) -> np.ndarray:
    """Link each image to the first one with the same bytes.

    Parameters
    ----------
    contents : uint8 array of shape (n, H)
        A hash of each image's bytes.

    Returns
    -------
    int64 array of shape (p, 2)
        Positions: the first image, then its copy.
    """
    hashes = np.ascontiguousarray(contents).view(f"V{contents.shape[1]}")[:, 0]
    _, first, hash_index = np.unique(hashes, return_index=True, return_inverse=True)
    first = first[hash_index]
    copies = np.flatnonzero(first != np.arange(len(first)))
    return np.stack([first[copies], copies], axis=1).astype(np.int64)


def hash_rows(X: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Compute a hash of each row used.

    Parameters
    ----------
    X : float array of shape (n, D)
    used : int array of shape (m,)

    Returns
    -------
    uint8 array of shape (m, 16)
    """
    hashes = (
        blake2b((X[i] + 0).tobytes(), digest_size=16).digest() for i in used
    )  # + 0 turns -0 into 0
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(used), 16)


def find_image_copies(listing: ImageListing) -> Copies:
    """Find images that have the same bytes; one whose size is known and unique is not read.

    Parameters
    ----------
    listing : ImageListing
        Of n images. One that cannot be read is linked to none.

    Returns
    -------
    Copies
        Exact copies only; positions are among the n images.
    """
    sizes = listing.sizes.copy()
    contents = np.zeros((len(sizes), 40), np.uint8)
    contents[:, 32:] = np.arange(len(sizes), dtype="<u8")[:, None].view(np.uint8)

    def read_contents(rows: np.ndarray) -> None:
        if not len(rows):
            return
        for row, image in read_images(listing, rows.tolist()):
            if isinstance(image, ImageFile):
                sizes[row] = image.size
                contents[row] = np.frombuffer(hash_bytes(image.data) + bytes(8), np.uint8)

    is_unknown = sizes < 0
    read_contents(np.flatnonzero(is_unknown))  # so that their sizes are known
    _, size_index, count = np.unique(sizes, return_inverse=True, return_counts=True)
    read_contents(np.flatnonzero((count[size_index] > 1) & ~is_unknown))
    return Copies(link_same_bytes(contents), NO_LINKS)


def number_units(groups: np.ndarray | None, n: int, links: np.ndarray) -> np.ndarray:
    """Assign unit numbers: images of one group and images that are linked share one.

    Parameters
    ----------
    groups : int array of shape (n,), or None
    n : int
        Number of images.
    links : int array of shape (p, 2)
        Positions of pairs of images.

    Returns
    -------
    int array of shape (n,)
        From 0; all different where every image is its own unit.
    """
    if groups is not None:
        _, first, group_index = np.unique(groups, return_index=True, return_inverse=True)
        links = np.concatenate([links, np.stack([first[group_index], np.arange(n)], axis=1)])
    graph = coo_array((np.ones(len(links), bool), links.T), (n, n))
    unit: np.ndarray = connected_components(graph, directed=False)[1]
    return unit.astype(np.intp)


def is_mostly_singletons(unit: np.ndarray) -> bool:
    """Tell whether nearly every image is its own unit, so that splits may draw single images.

    Parameters
    ----------
    unit : int array of shape (n,)

    Returns
    -------
    bool
        True if there are at least 0.9 n units.
    """
    return len(np.unique(unit)) >= MIN_UNITS_PER_IMAGE * len(unit)


def count_units(y: np.ndarray, unit: np.ndarray | None = None) -> np.ndarray:
    """Count the images (or units) of each class.

    Parameters
    ----------
    y : int array of shape (n,)
        Class numbers.
    unit : int array of shape (n,), optional
        From 0. Images are counted if not given.

    Returns
    -------
    int array of shape (K,)
        K is the greatest class number plus 1.
    """
    if unit is None:
        return np.bincount(y)
    n_units = int(unit.max(initial=0)) + 1
    return np.bincount(np.unique(y * n_units + unit) // n_units)
