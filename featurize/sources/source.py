"""What a source of images is: it lists images without opening any, and reads them as a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from featurize.errors import CallError
from featurize.sources.listing import ImageListing, ImageRead


class ImageReader(Protocol):
    """Reads images of one listing, in one thread; it keeps open what it read last."""

    def read(self, rows: np.ndarray) -> Iterator[ImageRead]:
        """Read images as a stream; memory holds few of them at a time.

        Parameters
        ----------
        rows : int array of shape (n,)
            Rows of the listing, in any order; best one of `ImageSource.split_rows`.

        Yields
        ------
        ImageRead
            One per row, in any order. Nothing that is wrong with an image, or its container,
            is raised.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class ImageSource(Protocol):
    """Images of one place. It holds options only, so it can be pickled for other processes."""

    @property
    def kind(self) -> str:
        """What it was taken for, in a few words: ``folder``, ``tar shards``."""
        ...

    @property
    def root(self) -> str:
        """Where the images are: a folder, a file or a URL, without any secret."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        ...

    @property
    def n_readers(self) -> int:
        """How many readers keep it busy, however few the cores."""
        ...

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images, without opening any.

        Parameters
        ----------
        known : ImageListing, optional
            An earlier listing of the same source with the same options. Containers that are
            unchanged since need not be opened.

        Returns
        -------
        ImageListing

        Raises
        ------
        CallError
            If there is no selected image, or the source cannot be listed at all.
        """
        ...

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys, for reading alone; sizes and stamps may be unknown.

        Parameters
        ----------
        paths : sequence of str
            n keys.

        Returns
        -------
        ImageListing
            Of n images, in the order given.

        Raises
        ------
        UnknownPathError
            If the source has to be listed, and has no such image.
        CallError
            If the source cannot be listed at all.
        """
        ...

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into chunks that are best read together.

        Parameters
        ----------
        listing : ImageListing
        rows : int array of shape (n,)
            Ascending.

        Returns
        -------
        list of int array
            Few and small enough for several readers to share them evenly.
        """
        ...

    def open_reader(self, listing: ImageListing) -> ImageReader:
        """Open a reader for one thread.

        Parameters
        ----------
        listing : ImageListing
            Of this source.

        Returns
        -------
        ImageReader
            To be closed.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """Describe the source by what determines its images and keys.

        Returns
        -------
        mapping of str to object
            JSON values; ``kind`` and the options that are set. Nothing secret.
        """
        ...


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; what a kind has no use for must not be given.

    Attributes
    ----------
    include, exclude : tuple of str
        Globs of the images' keys to select, and of those to leave out.
    follow : bool
        Whether to follow links that lead out of a folder.
    column : str, optional
        Of a table: the column that holds images, paths or URLs.
    split : str, optional
        Of tables and shards: take only this split, as ``train``.
    component : str, optional
        Of WebDataset samples with several images: which one, as ``jpg`` or ``left.jpg``.
    root : str, optional
        Of a list: the folder or URL where its paths begin; default the list's own folder.
    scratch : str, optional
        Of remote archives: a folder for copies of what was indexed.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow: bool = False
    column: str | None = None
    split: str | None = None
    component: str | None = None
    root: str | None = field(default=None, repr=False)  # of a URL, with its secrets
    scratch: str | None = None

    def refuse(self, kind: str, *names: str) -> None:
        """Check that options which mean nothing to a kind of source are not given.

        Parameters
        ----------
        kind : str
            Of the source.
        *names : str
            Of the options.

        Raises
        ------
        CallError
            If one is given.
        """
        for name in names:
            if getattr(self, name):
                raise CallError(f"--{name} means nothing for a {kind}; leave it out")


DEFAULT_OPTIONS = SourceOptions()
