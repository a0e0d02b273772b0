"""Tell what kind of source a path or URL is, and open it."""

import os
from collections.abc import Callable, Sequence

from featurize.errors import CallError
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.recognition.kinds import OpenedSource
from featurize.sources.recognition.local_paths import open_files, open_path
from featurize.sources.recognition.remote_addresses import open_address, open_addresses
from featurize.sources.source import DEFAULT_OPTIONS, ImageSource, SourceOptions
from featurize.sources.stores.addresses import is_address, parse_address
from featurize.text import format_count, to_printable

ImagesArgument = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def open_source(
    images: ImagesArgument,
    options: SourceOptions = DEFAULT_OPTIONS,
    say: Callable[[str], None] | None = None,
    former: str = "",
) -> ImageSource:
    """Open a source of images; no image is opened yet.

    Of a folder of this machine a few entries are looked at. What lies behind a URL is listed once,
    and the source takes what was found.

    Parameters
    ----------
    images : path or URL, or a sequence of them
        A folder of images; one or several archives or tables, or a folder of them; a list of
        images; or any of these behind a URL. Several are files of one kind. Names may have braces
        and stars: ``shard-{000..063}.tar``, ``*.tar``.
    options : SourceOptions
        A glob to include that ends as archives or tables do, ``*.tar``, chooses those files of a
        folder; one to exclude leaves them out.
    say : callable, optional
        Called with a sentence where a folder holds something else too, which is not read.
    former : str
        What it was taken for when a cache was made, the ``kind`` of `ImageSource.describe`; a
        folder that holds several kinds is that again.

    Returns
    -------
    ImageSource

    Raises
    ------
    CallError
        If there is nothing there, its kind is unknown, or an option means nothing for it.
    """
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    texts = [os.fspath(text) for text in given]
    if not texts or not all(texts):
        raise CallError("no images are given; give a folder, an archive, a table, a list or a URL")
    opened = (
        _open_several(texts, options) if len(texts) > 1 else _open_one(texts[0], options, former)
    )
    if opened.note and say is not None:
        say(opened.note)
    return opened.source


def describe_source(source: ImageSource) -> str:
    """Describe what a source was taken for, and how many files that are.

    Parameters
    ----------
    source : ImageSource

    Returns
    -------
    str
        As ``s3://bucket/wds: tar shards, 64 files``, or ``photos.zip: zip archive``.
    """
    said = f"{to_printable(source.root)}: {source.kind}"
    if isinstance(source, ContainerSource) and len(source.files) > 1:
        said += f", {format_count(len(source.files), 'file')}"
    return said


def _open_one(text: str, options: SourceOptions, former: str) -> OpenedSource:
    path = _to_local_path(text)
    if path:
        return open_path(path, options, former)
    return open_address(parse_address(text), options, former)


def _open_several(texts: Sequence[str], options: SourceOptions) -> OpenedSource:
    paths = [_to_local_path(text) for text in texts]
    if all(paths):
        return open_files(paths, options, is_named=True)
    if any(paths):
        raise CallError("paths and URLs cannot be mixed; give several sources one by one")
    return open_addresses([parse_address(text) for text in texts], options)


def _to_local_path(text: str) -> str:
    """Return the path of this machine that is meant; empty for a URL of a network."""
    if not is_address(text) or os.path.exists(text):  # noqa: PTH110
        return text
    address = parse_address(text)
    return address.path if address.protocol == "file" else ""
