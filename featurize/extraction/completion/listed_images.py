"""The images of a run: its globs, its source, and what that lists."""

from dataclasses import replace
from typing import TYPE_CHECKING

from featurize.cache.parts.index import PartsIndex
from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.known_images import recall_listing, reopen_source
from featurize.extraction.completion.label_table import has_expected_labels
from featurize.sources.folder import FOLDER
from featurize.sources.listing import ImageListing
from featurize.sources.opening import describe_source, open_source
from featurize.sources.patterns import GlobFilter, check_patterns
from featurize.sources.source import ImageSource
from featurize.text import format_count, to_printable

if TYPE_CHECKING:
    from featurize.extraction.request import RunRequest


def list_images(request: "RunRequest", cache: FeatureCache | None) -> ImageListing:
    """List the images of a run, and report files and rows that are left out.

    Parameters
    ----------
    request : RunRequest
    cache : FeatureCache or None
        The cache as it is: what is not asked for is as there.

    Returns
    -------
    ImageListing

    Raises
    ------
    CallError
        If there is no such source, or no image in it.
    """
    say = request.say
    globs = resolve_globs(request, cache)
    source = open_images(request, cache, globs)
    listing = list_source(source, cache, globs)
    if source.kind != FOLDER:
        say(describe_listing(listing))
    for sentence in listing.skipped:
        say(sentence)
    patterns = GlobFilter(listing.include, listing.exclude)
    if cache is not None and patterns:
        excluded = [path for path in cache.paths if not patterns.accepts(path)]
        if excluded:
            say(
                f"{len(excluded):,} rows of {cache.path} go: --include and --exclude leave their "
                f"images out (first: {to_printable(excluded[0])})"
            )
    return listing


Globs = tuple[tuple[str, ...], tuple[str, ...]]  # to include, to exclude


def resolve_globs(request: "RunRequest", recorded: FeatureCache | PartsIndex | None) -> Globs:
    """Take the globs that are asked for, or else those that are recorded.

    Parameters
    ----------
    request : RunRequest
    recorded : FeatureCache or PartsIndex, optional

    Returns
    -------
    include, exclude : tuple of str

    Raises
    ------
    CallError
        If one is invalid.
    """
    include = getattr(recorded, "include", ()) if request.include is None else request.include
    exclude = getattr(recorded, "exclude", ()) if request.exclude is None else request.exclude
    return check_patterns(include, "--include"), check_patterns(exclude, "--exclude")


def open_images(request: "RunRequest", cache: FeatureCache | None, globs: Globs) -> ImageSource:
    """Open the source of a run's images.

    Parameters
    ----------
    request : RunRequest
    cache : FeatureCache or None
        The cache as it is: options that are not asked for are as there.
    globs : (tuple of str, tuple of str)
        As of `resolve_globs`.

    Returns
    -------
    ImageSource

    Raises
    ------
    CallError
        If there is no such source.
    """
    options = replace(request.source_options, include=globs[0], exclude=globs[1])
    if cache is None:
        return open_source(request.images, options, request.say)
    return reopen_source(cache, request.images, options, request.say)


def list_source(source: ImageSource, cache: FeatureCache | None, globs: Globs) -> ImageListing:
    """List a source; containers that a cache knows, and that are unchanged, are not opened.

    Parameters
    ----------
    source : ImageSource
    cache : FeatureCache or None
    globs : (tuple of str, tuple of str)
        Those of the source.

    Returns
    -------
    ImageListing

    Raises
    ------
    CallError
        If there is no image in it.
    """
    known = None
    if cache is not None:
        has_same_globs = globs == (tuple(cache.include), tuple(cache.exclude))
        if has_same_globs and has_expected_labels(cache):
            known = recall_listing(cache, source)
    return source.list_images(known)


def describe_listing(listing: ImageListing) -> str:
    """Say what the source was taken for, and what came with its images.

    Parameters
    ----------
    listing : ImageListing

    Returns
    -------
    str
    """
    columns = f"; {', '.join(listing.columns)} came with them" if listing.columns else ""
    count = format_count(len(listing.paths), "image")
    return f"{describe_source(listing.source)}, {count}{columns}"
