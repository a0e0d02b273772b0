"""Names of containers in the keys of images: a shard or a table is no folder that means a class."""

from collections.abc import Collection, Sequence

from featurize.cache.reader import FeatureCache
from featurize.sources.listing import ImageListing


def list_containers(images: FeatureCache | ImageListing) -> list[str]:
    """List the containers of images; where there are several, keys begin with their names.

    Parameters
    ----------
    images : FeatureCache or ImageListing

    Returns
    -------
    list of str
        Empty where each image is a file.
    """
    if isinstance(images, FeatureCache):
        return [container.name for container in images.containers]
    places = images.places
    return [] if places is None else [container.name for container in places.containers]


def strip_containers(paths: Sequence[str], containers: Collection[str]) -> Sequence[str]:
    """Take the names of containers off the keys of images.

    Parameters
    ----------
    paths : sequence of str
        n keys.
    containers : collection of str
        Names, POSIX.

    Returns
    -------
    sequence of str
        n paths: in a container that begins a key, else the key.
    """
    if not containers:
        return paths
    names = set(containers)
    return [_strip_container(path, names) for path in paths]


def _strip_container(path: str, names: set[str]) -> str:
    end = path.find("/")
    while end >= 0:
        if path[:end] in names:
            return path[end + 1 :]
        end = path.find("/", end + 1)
    return path
