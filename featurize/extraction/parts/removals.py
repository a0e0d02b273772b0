"""How many rows a run may remove, over all parts."""

from featurize.cache.parts.index import PartsIndex
from featurize.cache.reader import FeatureCache
from featurize.errors import CallError
from featurize.extraction.completion.changes import (
    MAX_VANISHED_SHARE,
    ListingDiff,
    refuse_mass_removal,
)
from featurize.extraction.parts.part_images import PartImages
from featurize.extraction.parts.planning import IndexReader, find_range
from featurize.extraction.parts.tallies import Tallies
from featurize.sources.listing import ImageListing


class Removals:
    """Holds a run to `MAX_VANISHED_SHARE` of all rows, as `refuse_mass_removal` does for one file.

    A part of its own may lose as much, too. Images that have moved to another part are lost to the
    one where they were.

    Parameters
    ----------
    tallies : Tallies
    images : PartImages
    index_reader : IndexReader
    is_allowed : bool
        Whether any number of rows may go.
    """

    def __init__(
        self, tallies: Tallies, images: PartImages, index_reader: IndexReader, is_allowed: bool
    ) -> None:
        self._tallies, self._images = tallies, images
        self._index_reader, self._is_allowed = index_reader, is_allowed
        self._n_removed = 0

    def refuse_gone_parts(self, index: PartsIndex) -> None:
        """Check, before anything is changed, that few parts have lost all their images.

        Parameters
        ----------
        index : PartsIndex

        Raises
        ------
        CallError
            If too many rows would be lost.
        """
        if self._is_allowed:
            return
        folder = self._tallies.folder
        ranges = [(part.file, find_range(index, i)) for i, part in enumerate(index.parts)]
        gone = [folder / file for file, keys in ranges if self._images.is_gone(keys)]
        caches = [FeatureCache(path) for path in gone if path.exists()]
        if caches:
            self._check(sum(cache.n_rows for cache in caches), caches[0].paths[0])

    def refuse_whole(self, cache: FeatureCache) -> None:
        """Check that a part may go, all of whose images are gone; its rows count as removed.

        Parameters
        ----------
        cache : FeatureCache

        Raises
        ------
        CallError
            If too many rows would be lost.
        """
        if not self._is_allowed:
            self._check(cache.n_rows, cache.paths[0])
        self._n_removed += cache.n_rows

    def refuse_rows(self, listing: ImageListing, cache: FeatureCache, diff: ListingDiff) -> None:
        """Check that the rows of a part may go whose images are gone; they count as removed.

        Parameters
        ----------
        listing : ImageListing
        cache : FeatureCache
        diff : ListingDiff
            Of the two.

        Raises
        ------
        CallError
            If too many rows would be lost.
        """
        own_limit = MAX_VANISHED_SHARE * cache.n_rows
        if not self._is_allowed and diff.n_vanished > own_limit:
            n_left = MAX_VANISHED_SHARE * self._count_all() - self._n_removed
            refuse_mass_removal(listing, cache, diff, max(0.0, n_left - own_limit))
        self._n_removed += diff.n_vanished

    def _check(self, n_rows: int, first: str) -> None:
        n_lost, n_all = self._n_removed + n_rows, self._count_all()
        if n_lost > MAX_VANISHED_SHARE * n_all:
            raise CallError(
                f"{n_lost} of the {n_all} images in {self._tallies.folder} are not in "
                f"{self._images.source.root} (first: {first}). Is the source right, and mounted? "
                "If they are meant to go, add --prune"
            )

    def _count_all(self) -> int:
        """Count the rows of all parts, with those removed by this run."""
        for part in self._index_reader.read().parts:
            self._tallies.look_at(part.file)
        return self._tallies.n_rows + self._n_removed
