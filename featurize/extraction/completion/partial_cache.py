"""The partial cache ``C.h5.part``, in which a cache grows beside the old one."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from featurize.cache.builder import allocate_cache, estimate_cache_bytes
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.reader import FeatureCache
from featurize.errors import CacheBusyError, CacheFormatError
from featurize.extraction.completion.known_images import describe_listing
from featurize.files import replace_durably
from featurize.progress import ignore
from featurize.sources.listing import ImageListing

_REMOVE_ADVICE = "It stands where the cache grows; remove it"


def partial_path(path: Path) -> Path:
    """Return the path of the partial cache.

    Parameters
    ----------
    path : Path
        The cache.

    Returns
    -------
    Path
        ``C.h5.part``.
    """
    return path.with_name(path.name + ".part")


def list_partial_paths(path: Path) -> list[Path]:
    """List the files that a cache leaves beside it while it grows.

    Parameters
    ----------
    path : Path
        The cache.

    Returns
    -------
    list of Path
        They need not exist.
    """
    return [partial_path(path), _old_partial_path(path)]


def _old_partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.old")


def open_if_exists(path: Path, advice: str) -> FeatureCache | None:
    """Open a cache if the file exists.

    Parameters
    ----------
    path : Path
    advice : str
        What to do about a file that is not a cache; appended to the message.

    Returns
    -------
    FeatureCache or None

    Raises
    ------
    CacheFormatError
        If the file is not a cache.
    """
    if not path.exists():
        return None
    try:
        return FeatureCache(path)
    except CacheFormatError as error:
        raise CacheFormatError(f"{error}. {advice}") from error


def allocate_for_listing(
    path: Path, extractor: Extractor, layers: list[LayerInfo], listing: ImageListing
) -> None:
    """Write an empty cache of all listed images; see `builder.allocate_cache`.

    Parameters
    ----------
    path : Path
    extractor : Extractor
    layers : list of LayerInfo
        Shallowest first.
    listing : ImageListing

    Raises
    ------
    DiskFullError, OutputError
        If the file cannot be written.
    """
    allocate_cache(
        path,
        extractor,
        layers,
        listing.paths,
        listing.sizes,
        listing.stamps,
        root=_resolve_root(listing.root),
        include=listing.include,
        exclude=listing.exclude,
        source=describe_listing(listing),
        places=listing.places,
    )


def _resolve_root(root: str) -> str:
    """Return where images are, independently of the working folder."""
    return root if "://" in root else str(Path(root).resolve())


def open_partial(
    cache: FeatureCache,
    layers: list[LayerInfo],
    listing: ImageListing,
    say: Callable[[str], None] = ignore,
) -> list[FeatureCache]:
    """Allocate the partial cache, or continue with the one that an earlier run left.

    Parameters
    ----------
    cache : FeatureCache
        The old cache.
    layers : list of LayerInfo
        Of the grown cache, shallowest first.
    listing : ImageListing
        The images of the grown cache.
    say : callable
        Called with a sentence about each choice made.

    Returns
    -------
    list of FeatureCache
        Older caches that have all of `layers`, to copy rows from.

    Raises
    ------
    CacheFormatError
        If the file at `partial_path` is not a cache.
    DiskFullError, OutputError
        If the partial cache cannot be allocated.
    """
    partial, old_partial = partial_path(cache.path), _old_partial_path(cache.path)
    earlier = open_if_exists(partial, _REMOVE_ADVICE)
    fits = earlier is not None and (
        earlier.paths == listing.paths and list(earlier.layers.values()) == layers
    )
    if fits:
        say(f"going on with {partial}")
    else:
        if earlier is not None:  # for other images or layers; its rows can still be copied
            partial.replace(old_partial)
        needed = estimate_cache_bytes(layers, len(listing.paths))
        say(f"{partial} takes {needed / 1e6:,.1f} MB beside the cache until it replaces it")
        allocate_for_listing(partial, cache.extractor, layers, listing)
    sources = [cache, open_if_exists(old_partial, _REMOVE_ADVICE)]
    fingerprints = {info.name: info.fingerprint for info in layers}
    return [
        source
        for source in sources
        if source is not None
        and all(
            name in source.layers and source.layers[name].fingerprint == fingerprint
            for name, fingerprint in fingerprints.items()
        )
    ]


def replace_original(cache: FeatureCache) -> None:
    """Replace the old cache by the finished partial cache.

    Parameters
    ----------
    cache : FeatureCache
        The old cache.

    Raises
    ------
    CacheBusyError
        If the partial cache is gone, because a process on a host that does not share locks has
        put it in place.
    """
    try:
        replace_durably(partial_path(cache.path), cache.path)
    except FileNotFoundError as error:
        raise CacheBusyError(
            f"{partial_path(cache.path)} is gone: another process, perhaps on another host, has "
            f"been adding to {cache.path} at the same time. Nothing is lost; once it has ended, "
            "run this again"
        ) from error
    with suppress(FileNotFoundError):
        _old_partial_path(cache.path).unlink()
