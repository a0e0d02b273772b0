"""Tell what kind of source a path or URL is, and open it."""

import os
from collections.abc import Sequence
from pathlib import Path

from featurize.errors import CallError
from featurize.sources.folder import FolderSource
from featurize.sources.source import DEFAULT_OPTIONS, ImageSource, SourceOptions


def open_source(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: SourceOptions = DEFAULT_OPTIONS,
) -> ImageSource:
    """Open a source of images; nothing is listed yet.

    Parameters
    ----------
    images : path or URL, or a sequence of them
        A folder of images; one or several archives or tables, or a folder of them; a list of
        images; or any of these behind a URL. Several are files of one kind.
    options : SourceOptions

    Returns
    -------
    ImageSource

    Raises
    ------
    CallError
        If there is nothing there, its kind is unknown, or an option means nothing for it.
    """
    root = Path(os.fspath(images)) if isinstance(images, (str, os.PathLike)) else Path(images[0])
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise CallError(f"{root} {problem}; give the folder that holds the images")
    return FolderSource(str(root), options)
