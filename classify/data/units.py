"""Units: images that belong together, which no split may part and every interval counts as one.

A group of the user's, a file under two names, a picture saved twice: what is learnt from one of
them answers for the others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from classify.data.features import FeatureRows
from classify.data.near_copies import find_near_copies
from classify.store import compute_digest, load_artifact, save_artifact
from featurize.cache.reader import FeatureCache
from featurize.errors import ImageUnreadableError
from featurize.files import hash_bytes
from featurize.images.reading import read_image_file
from featurize.sources.folder import join_path

MIN_UNITS_PER_IMAGE = 0.9  # units an image, from which on images are drawn one by one

VERSION = 1
MAX_MEAN_COPIES = 10  # images a set of copies, on average: then what looks the same is no copy
MAX_MULTIPLICATIONS = 5e10  # multiplications to look for near-copies by: two or three seconds
NO_LINKS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class Copies:
    """Images that are copies of each other, whatever their groups and labels.

    Attributes
    ----------
    same, near : int arrays of shape (p, 2) and (q, 2)
        Positions of images with the same bytes, and of images that are nearly the same.
    """

    exact: np.ndarray
    near: np.ndarray

    def assign_units(self, groups: np.ndarray | None, n: int) -> tuple[np.ndarray, list[str]]:
        """Number the units of n images, and say what a user should know.

        Parameters
        ----------
        groups : int array of shape (n,), or None
            The user's.
        n : int

        Returns
        -------
        int array of shape (n,), or None
            None where every image stands alone.
        list of str
        """
        links = np.concatenate([self.exact, self.near])
        found = number_units(None, n, links)
        if found is not None and len(np.unique(found)) * MAX_MEAN_COPIES < n:
            links = self.exact
            told = [
                f"{len(np.unique(self.near)):,} images can hardly be told from others by their "
                "features, so that only those with the same bytes count as copies"
            ]
        else:
            alike, other = np.unique(self.exact), np.setdiff1d(self.near, self.exact)
            what = [f"{len(alike):,} byte for byte"] if len(alike) else []
            what += [f"{len(other):,} nearly so"] if len(other) else []
            told = [
                f"{len(alike) + len(other):,} images are the same as others ({', '.join(what)}): "
                "each set of copies counts as one, in folds, in intervals, and in a split that is "
                "drawn"
            ]
        return number_units(groups, n, links), told if len(self.exact) + len(self.near) else []


def find_copies(cache: FeatureCache, rows: np.ndarray) -> Copies:
    """Find copies by their bytes, and near-copies by the features of the deepest layer.

    Labels are not looked at. What is found is kept beside the cache.

    Parameters
    ----------
    cache : FeatureCache
    rows : int array of shape (n,)
        Marked rows.

    Returns
    -------
    Copies
        Positions are among the n. Near-copies are what
        `classify.data.near_copies.find_near_copies` finds; where that would take more than 5e10
        multiplications (10,000 images of 512 features), those with the same bytes alone.
    """
    contents, layer = cache.column("sha256")[rows], cache.layer()
    same = link_same_bytes(contents)
    if float(len(rows)) ** 2 * layer.dim > MAX_MULTIPLICATIONS:
        return Copies(same, NO_LINKS)
    key = compute_digest([VERSION, layer.fingerprint], contents)
    kept = load_artifact(cache, "copies", key)
    near = None if kept is None else _validate_links(kept.arrays.get("links"), len(rows))
    if near is None:
        features = FeatureRows.from_cache(cache, (layer.name,), rows)
        features.check_finite(cache)
        near = find_near_copies(features)
        save_artifact(
            cache, "copies", key, {"links": near}, {"layer": layer.name, "rows": len(rows)}
        )
    return Copies(same, near)


def _validate_links(found: np.ndarray | None, n: int) -> np.ndarray | None:
    """Links that were kept, or None if they are none: the file may be anyone's."""
    if found is None or found.dtype != np.int64 or found.ndim != 2 or found.shape[1] != 2:
        return None
    return found if ((found >= 0) & (found < n)).all() else None


def link_same_bytes(contents: np.ndarray) -> np.ndarray:
    """Link each image to the first that has the same bytes: int (p, 2), from (n, 32) hashes."""
    whole = np.ascontiguousarray(contents).view(f"V{contents.shape[1]}")[:, 0]
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    first = first[which]
    again = np.flatnonzero(first != np.arange(len(first)))
    return np.stack([first[again], again], axis=1).astype(np.int64)


def find_file_copies(
    root: str | os.PathLike[str], paths: Sequence[str], sizes: np.ndarray
) -> Copies:
    """Find files that have the same bytes. Those of a size of their own are not read.

    Parameters
    ----------
    root : path
        The image folder.
    paths : sequence of str
        n of them, relative to it. One that cannot be read is linked to none.
    sizes : int array of shape (n,)
        In bytes.
    """
    _, which, count = np.unique(sizes, return_inverse=True, return_counts=True)
    contents = np.zeros((len(paths), 40), np.uint8)
    contents[:, 32:] = np.arange(len(paths), dtype="<u8")[:, None].view(np.uint8)
    for i in np.flatnonzero(count[which] > 1):
        try:
            data = read_image_file(join_path(root, paths[int(i)])).data
        except ImageUnreadableError:
            continue
        contents[i] = np.frombuffer(hash_bytes(data) + bytes(8), np.uint8)
    return Copies(link_same_bytes(contents), NO_LINKS)


def number_units(groups: np.ndarray | None, n: int, links: np.ndarray) -> np.ndarray:
    """Number the units: images of one group and images that are linked share one.

    Parameters
    ----------
    groups : int array of shape (n,), or None
    n : int
    links : int array of shape (p, 2)

    Returns
    -------
    int array of shape (n,)
        From 0; all different where every image stands alone.
    """
    if groups is not None:
        _, first, which = np.unique(groups, return_index=True, return_inverse=True)
        links = np.concatenate([links, np.stack([first[which], np.arange(n)], axis=1)])
    graph = coo_array((np.ones(len(links), bool), links.T), (n, n))
    unit: np.ndarray = connected_components(graph, directed=False)[1]
    return unit.astype(np.intp)


def is_mostly_singletons(unit: np.ndarray) -> bool:
    """Whether nearly every image is a unit of its own: then units need no care."""
    return len(np.unique(unit)) >= MIN_UNITS_PER_IMAGE * len(unit)


def count_units(y: np.ndarray, unit: np.ndarray | None = None) -> np.ndarray:
    """How often each class can be torn apart: its images, or the units they are in."""
    if unit is None:
        return np.bincount(y)
    n_units = int(unit.max(initial=0)) + 1
    return np.bincount(np.unique(y * n_units + unit) // n_units)
