"""Images of a source by their keys, listed once for all that reads them."""

import os
from collections.abc import Sequence
from functools import cached_property

from classify.data.sets.cache_set import list_caches
from featurize.cache.reader import FeatureCache
from featurize.extraction.completion.known_images import recall_listing, reopen_source
from featurize.sources.bucket import BucketSource
from featurize.sources.folder import FolderSource
from featurize.sources.listing import ImageListing
from featurize.sources.opening import open_source

ImagesLike = str | os.PathLike[str]


class SourceImages:
    """The images of a source, as one command needs them.

    Images of a folder or bucket are found by their names. Any other source is listed, at most
    once.

    Parameters
    ----------
    images : path or URL
        A folder, an archive, a table: whatever `featurize run` takes.
    cache : FeatureCache, optional
        Made of these images: it knows how they were read, and where they lie in containers that
        have not changed. Of a set the first cache does.

    Attributes
    ----------
    source : ImageSource

    Raises
    ------
    featurize.errors.CallError
        If there is nothing there, or its kind is unknown.
    """

    def __init__(self, images: ImagesLike, cache: FeatureCache | None = None) -> None:
        self._cache = None if cache is None else next(iter(list_caches(cache).values()))
        self.source = (
            open_source(images) if self._cache is None else reopen_source(self._cache, images)
        )

    @property
    def is_folder(self) -> bool:
        """Whether each image is a file of a folder of this machine."""
        return isinstance(self.source, FolderSource)

    @property
    def is_found_by_name(self) -> bool:
        """Whether images can be read by their keys without any listing."""
        return isinstance(self.source, (FolderSource, BucketSource))

    @cached_property
    def listing(self) -> ImageListing:
        """All images, listed when they are first asked for.

        With a cache, what came with them is not listed.
        """
        known = None if self._cache is None else recall_listing(self._cache, self.source)
        return self.source.list_images(known)

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """Locate images for reading.

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
        featurize.errors.UnknownPathError
            If an image is not there; of a folder or bucket, reading tells.
        featurize.errors.CallError
            If the source cannot be listed.
        """
        if self.is_found_by_name:
            return self.source.locate(paths)
        return self.listing.select(paths)

    def locate_present(self, paths: Sequence[str]) -> ImageListing:
        """Locate those of some images that are there.

        Parameters
        ----------
        paths : sequence of str

        Returns
        -------
        ImageListing
            In the order given. Of a folder or bucket, reading tells whether an image is there.

        Raises
        ------
        featurize.errors.CallError
            If the source cannot be listed.
        """
        if self.is_found_by_name:
            return self.source.locate(paths)
        present = set(self.listing.paths)
        return self.listing.select([path for path in paths if path in present])
