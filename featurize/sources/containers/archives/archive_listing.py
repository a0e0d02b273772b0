"""From the members of archives to a listing: names that can be keys, and rows in their order."""

from collections.abc import Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np

from featurize.errors import NoImagesError
from featurize.sources.containers.container_source import ContainerSource
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.listing import (
    MAX_NAMED,
    Container,
    ImageListing,
    ImagePlaces,
    SkippedNames,
    find_key_problem,
)
from featurize.sources.patterns import GlobFilter
from featurize.text import format_count, to_printable

MAX_COLUMNS = 32  # of what archives say of their images

HIDDEN = "its name is hidden, or macOS's own"
REPEATED = "another image has the same name; the last one counts"
SAME_KEY = "an image of another container has the same key"


class ArchiveImage(NamedTuple):
    """An image of an archive.

    Attributes
    ----------
    name : str
        In the archive, cleaned.
    offset : int
        Byte of the archive.
    size : int
        In bytes.
    stamp : int
        Version stamp.
    """

    name: str
    offset: int
    size: int
    stamp: int


def clean_name(name: str) -> str:
    """Take off the ``./`` that archives put before names.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
    """
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def is_image_name(name: str) -> bool:
    """Tell whether a member is taken for an image.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool
    """
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return bool(stem) and (dot + suffix).lower() in IMAGE_SUFFIXES


class ArchiveRows:
    """The rows of a listing, archive by archive.

    Parameters
    ----------
    source : ContainerSource
    known : ImageListing, optional
        An earlier listing of the source.

    Attributes
    ----------
    skipped : SkippedNames
    notices : list of str
        Further sentences about what was skipped.
    """

    def __init__(self, source: ContainerSource, known: ImageListing | None) -> None:
        self.skipped, self.notices = SkippedNames(), list[str]()
        self._source, self._known = source, known
        self._patterns = GlobFilter(source.options.include, source.options.exclude)
        self._containers: list[Container] = []
        self._unlisted: list[str] = []
        self._reused: list[str] = []
        self._n_excluded = 0
        self._paths: list[str] = []
        self._numbers: list[tuple[int, int, int, int]] = []  # container, offset, size, stamp
        self._columns: dict[str, dict[int, str]] = {}
        self._dropped_columns: set[str] = set()

    def select(self, container: str, images: list[ArchiveImage]) -> list[ArchiveImage]:
        """Select the images whose names can be keys, and that the globs leave.

        Parameters
        ----------
        container : str
        images : list of ArchiveImage

        Returns
        -------
        list of ArchiveImage
        """
        selected = []
        for image in images:
            key = self._source.make_key(container, image.name)
            problem = find_key_problem(key)
            parts = image.name.split("/")
            if not problem and (parts[0] == "__MACOSX" or any(p.startswith(".") for p in parts)):
                problem = HIDDEN
            if problem:
                self.skipped.add(self._source.make_key(container, image.name), problem)
            elif self._patterns and not self._patterns.accepts(key):
                self._n_excluded += 1
            else:
                selected.append(image)
        return selected

    def add(
        self,
        container: Container,
        images: list[ArchiveImage],
        texts: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Add a container with its images.

        Parameters
        ----------
        container : Container
        images : list of ArchiveImage
            As `select` leaves them.
        texts : mapping of str to mapping of str to str
            What the container says of images, by their names in it, then by column.
        """
        index = len(self._containers)
        self._containers.append(container)
        for image in images:
            row = len(self._paths)
            self._paths.append(self._source.make_key(container.name, image.name))
            self._numbers.append((index, image.offset, image.size, image.stamp))
            for column, text in texts.get(image.name, {}).items():
                if column not in self._columns and len(self._columns) >= MAX_COLUMNS:
                    self._dropped_columns.add(column)
                else:
                    self._columns.setdefault(column, {})[row] = text

    def reuse(self, container: Container, rows: np.ndarray) -> None:
        """Add a container as it was in the earlier listing.

        Parameters
        ----------
        container : Container
        rows : int array
            Its rows in that listing.
        """
        known, index = self._known, len(self._containers)
        if known is None or known.places is None:
            return
        self._containers.append(container)
        self._reused.append(container.name)
        numbers = known.places.offsets[rows], known.sizes[rows], known.stamps[rows]
        self._paths += [known.paths[row] for row in rows.tolist()]
        columns = zip(*(values.tolist() for values in numbers), strict=True)
        self._numbers += [(index, offset, size, stamp) for offset, size, stamp in columns]

    def fail(self, name: str, problem: str) -> None:
        """Note that a container could not be listed completely.

        Parameters
        ----------
        name, problem : str
        """
        self.skipped.add(name, to_printable(problem))
        self._unlisted.append(name)

    def build(self) -> ImageListing:
        """Build the listing.

        Returns
        -------
        ImageListing

        Raises
        ------
        NoImagesError
            If there is no image.
        """
        order = sorted(range(len(self._paths)), key=self._paths.__getitem__)
        is_repeated = [
            i > 0 and self._paths[order[i - 1]] == self._paths[row] for i, row in enumerate(order)
        ]
        for row in compress(order, is_repeated):
            self.skipped.add(self._paths[row], SAME_KEY)
        order = [row for row, repeated in zip(order, is_repeated, strict=True) if not repeated]
        skipped = [*self.skipped.describe(), *self.notices]
        if not order:
            raise NoImagesError(self._explain_empty(skipped))
        if self._dropped_columns:
            count = format_count(len(self._dropped_columns), "field")
            skipped.append(f"{count} of labels beyond the first {MAX_COLUMNS} were left out")
        if not self._reused:
            skipped += self._patterns.describe_unmatched(self._source.root)
        numbers = np.array([self._numbers[row] for row in order], np.int64)
        return ImageListing(
            self._source,  # type: ignore[arg-type]  # a subclass, which lists and reads
            [self._paths[row] for row in order],
            numbers[:, 2].copy(),
            numbers[:, 3].copy(),
            skipped,
            tuple(self._unlisted),
            self._patterns.include,
            self._patterns.exclude,
            ImagePlaces(self._containers, numbers[:, 0].astype(np.int32), numbers[:, 1].copy()),
            {
                column: [texts.get(row, "") for row in order]
                for column, texts in self._columns.items()
            },
            reused=tuple(self._reused),
        )

    def _explain_empty(self, skipped: list[str]) -> str:
        root = self._source.root
        if self._n_excluded:
            return (
                f"none of the {self._n_excluded:,} images in {root} is left by "
                "--include and --exclude"
            )
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        files = [file.name for file in self._source.files[:MAX_NAMED]]
        count = format_count(len(self._source.files), "file")
        message = f"no image in {root}; looked for {suffixes} in {count} ({', '.join(files)}"
        message += ", ...)" if len(files) < len(self._source.files) else ")"
        return ". ".join([message, *skipped])
