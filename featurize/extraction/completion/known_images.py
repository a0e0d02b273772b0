"""What a cache knows of its source: a listing, so that unchanged containers need not be opened."""

from dataclasses import replace
from typing import Any

from featurize.cache.format import compute_place_check
from featurize.cache.reader import FeatureCache
from featurize.fingerprint import canonical_json
from featurize.progress import Say, ignore
from featurize.sources.folder import FOLDER
from featurize.sources.listing import Container, ImageListing, ImagePlaces
from featurize.sources.opening import ImagesArgument, open_source
from featurize.sources.source import DEFAULT_OPTIONS, ImageSource, SourceOptions

RECORDED_OPTIONS = ("column", "split", "component", "root")
COLUMNS_KEY = "columns"  # names of what a source says of its images


def describe_listing(listing: ImageListing) -> dict[str, Any] | None:
    """Describe a listing's source for a cache.

    Parameters
    ----------
    listing : ImageListing

    Returns
    -------
    dict of str to object, or None
        JSON values; None for a folder, as in every cache before 1.3.
    """
    description = dict(listing.source.describe())
    if description == {"kind": FOLDER}:
        return None
    return description | ({COLUMNS_KEY: sorted(listing.columns)} if listing.columns else {})


def is_same_source(cache: FeatureCache, source: ImageSource) -> bool:
    """Tell whether a cache was made of a source of this kind, read with these options.

    Parameters
    ----------
    cache : FeatureCache
    source : ImageSource

    Returns
    -------
    bool
    """
    recorded = {key: value for key, value in cache.source.items() if key != COLUMNS_KEY}
    return canonical_json(recorded or {"kind": FOLDER}) == canonical_json(dict(source.describe()))


def reopen_source(
    cache: FeatureCache,
    images: ImagesArgument,
    options: SourceOptions = DEFAULT_OPTIONS,
    say: Say = ignore,
) -> ImageSource:
    """Open the source of a cache's images.

    Parameters
    ----------
    cache : FeatureCache
    images : path or URL, or sequence of them
        Where they are now, as for `open_source`.
    options : SourceOptions
        Those that are not given are as the cache was made, if the source is of the same kind.
    say : callable
        Called with a sentence where something else lies there, which is not read.

    Returns
    -------
    ImageSource

    Raises
    ------
    CallError
        As `open_source`.
    """
    former = str(cache.source.get("kind", FOLDER))
    source = open_source(images, options, say, former)
    recorded = {
        name: cache.source[name]
        for name in RECORDED_OPTIONS
        if isinstance(cache.source.get(name), str) and getattr(options, name) is None
    }
    if not recorded or former != source.describe()["kind"]:
        return source
    return open_source(images, replace(options, **recorded), former=former)


def recall_listing(cache: FeatureCache, source: ImageSource) -> ImageListing | None:
    """Recall the listing from which a cache was made.

    Parameters
    ----------
    cache : FeatureCache
    source : ImageSource
        What is to be listed now, with the same globs.

    Returns
    -------
    ImageListing or None
        None if the cache was made of another source, with other options, or of single files. A
        container whose rows are not as its index said has the stamp 0.
    """
    if not cache.containers or not is_same_source(cache, source):
        return None
    stamps, offsets = cache.column("mtime_ns"), cache.column("offset")
    container_of = cache.column("container")
    if container_of.min() < 0 or container_of.max() >= len(cache.containers):
        return None
    places = ImagePlaces([*cache.containers], container_of, offsets)
    containers = []
    for record, rows in zip(cache.containers, places.group_rows(), strict=True):
        is_intact = compute_place_check(stamps[rows], offsets[rows]) == record.check
        containers.append(Container(record.name, record.size, record.stamp if is_intact else 0))
    return ImageListing(
        source,
        cache.paths,
        cache.column("size"),
        stamps,
        include=tuple(cache.include),
        exclude=tuple(cache.exclude),
        places=replace(places, containers=containers),
    )
