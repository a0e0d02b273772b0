"""List the images of a bucket, or of any store behind a network, by their names alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from featurize.errors import CallError
from featurize.sources.file_reader import FileReader
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.listing import (
    UNKNOWN_SIZE,
    ImageListing,
    SkippedNames,
    find_key_problem,
)
from featurize.sources.patterns import select_images
from featurize.sources.source import DEFAULT_OPTIONS, SourceOptions
from featurize.sources.stores.remote_store import MAX_REQUESTS, RemoteStore
from featurize.sources.stores.store import StoredFile
from featurize.text import to_printable

BUCKET = "bucket"
MAX_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class BucketSource:
    """Images that are objects below a URL.

    Parameters
    ----------
    store : RemoteStore
    options : SourceOptions
        Its globs.
    files : tuple of StoredFile, optional
        What lies in the store, if that has been listed already. It is left out of a pickle.
    """

    store: RemoteStore
    options: SourceOptions = DEFAULT_OPTIONS
    files: tuple[StoredFile, ...] | None = field(default=None, repr=False, compare=False)
    kind = BUCKET
    is_remote = True
    n_readers = 4  # each has `MAX_REQUESTS` under way

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store, self.options)

    @property
    def root(self) -> str:
        """The URL, without any secret."""
        return self.store.root

    def list_images(self, known: ImageListing | None = None) -> ImageListing:
        """List the images by one recursive listing; see `ImageSource.list_images`.

        Hidden names are skipped, as in a folder.
        """
        skipped = SkippedNames()
        images: list[StoredFile] = []
        for file in self.store.list_files() if self.files is None else self.files:
            if is_image_name(file.name):
                problem = find_key_problem(file.name)
                if problem:
                    skipped.add(file.name, problem)
                else:
                    images.append(file)
        if not images:
            looked_for = f"looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
            sentences = [
                f"no image in {to_printable(self.root)}; {looked_for}",
                *skipped.describe(),
            ]
            raise CallError(". ".join(sentences))
        images.sort()
        listing = ImageListing(
            replace(self, files=None),
            [file.name for file in images],
            np.array([file.size for file in images], np.int64),
            np.array([file.stamp for file in images], np.int64),
            skipped.describe(),
        )
        options = self.options
        return select_images(listing, options.include, options.exclude, np.ones(len(images), bool))

    def locate(self, paths: Sequence[str]) -> ImageListing:
        """List images by their keys, without listing the bucket."""
        count = len(paths)
        return ImageListing(
            replace(self, files=None),
            list(paths),
            np.full(count, UNKNOWN_SIZE),
            np.zeros(count, np.int64),
        )

    def split_rows(self, listing: ImageListing, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows into as many as one reader has requests under way, or fewer large ones."""
        chunks, start, n_bytes = [], 0, 0
        for i, size in enumerate(np.maximum(listing.sizes[rows], 0).tolist()):
            if i > start and (i - start >= MAX_REQUESTS or n_bytes + size > MAX_CHUNK_BYTES):
                chunks.append(rows[start:i])
                start, n_bytes = i, 0
            n_bytes += size
        return [*chunks, rows[start:]] if len(rows) else []

    def open_reader(self, listing: ImageListing) -> FileReader:
        """Open a reader; see `ImageSource.open_reader`."""
        return FileReader(self.store, listing)

    def describe(self) -> dict[str, Any]:
        """Describe the source; see `ImageSource.describe`."""
        return {"kind": BUCKET}


def is_image_name(name: str) -> bool:
    """Tell whether a file is an image, by its suffix.

    Parameters
    ----------
    name : str
        POSIX path.

    Returns
    -------
    bool
    """
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and (dot + suffix).lower() in IMAGE_SUFFIXES
