"""One part: claimed by its lock, listed, checked and completed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import PartsIndex
from featurize.cache.parts.opening import describe_difference
from featurize.cache.reader import FeatureCache
from featurize.errors import FingerprintMismatchError, NoImagesError
from featurize.extraction.completion.changes import diff_listing, find_pending_rows
from featurize.extraction.completion.label_table import has_label_files
from featurize.extraction.completion.partial_cache import open_if_exists, partial_path
from featurize.extraction.parts.part_images import KeyRange, PartImages
from featurize.extraction.parts.planning import (
    IndexReader,
    drop_part,
    find_position,
    find_range,
    register_layers,
)
from featurize.extraction.parts.removals import Removals
from featurize.extraction.parts.tallies import PartTally, Tallies, WholeProgress
from featurize.extraction.request import RunRequest
from featurize.extraction.setup import ExtractionSetup
from featurize.extraction.single_cache import (
    KEEP_ADVICE,
    CacheState,
    complete_locked,
    say_unlocked,
)
from featurize.layer_spec import LayerSpec
from featurize.pipeline.in_flight import in_flight_path
from featurize.pipeline.stats import RunStats


class PartCompletion:
    """Completes parts, one after another, with one network.

    Parameters
    ----------
    images : PartImages
    setup : ExtractionSetup
        Of all parts.
    request : RunRequest
    stats : RunStats
        Of the run; updated in place.
    tallies : Tallies
        Updated in place.
    removals : Removals
    index_reader : IndexReader
    world_size : int
        How many processes share the parts.
    """

    def __init__(
        self,
        images: PartImages,
        setup: ExtractionSetup,
        request: RunRequest,
        stats: RunStats,
        tallies: Tallies,
        removals: Removals,
        index_reader: IndexReader,
        world_size: int,
    ) -> None:
        self.images, self.setup, self.request, self.stats = images, setup, request, stats
        self.folder, self.tallies = tallies.folder, tallies
        self._removals, self._index_reader = removals, index_reader
        self._world_size = world_size
        self.progress = WholeProgress(request.report, images.count(KeyRange("")))
        self.part_request = replace(request, report=self.progress.report)

    def complete(self, file: str) -> None:
        """Complete a part, unless its images have gone and others have dropped it.

        Parameters
        ----------
        file : str
            Its name in the folder.

        Raises
        ------
        CacheBusyError
            If another process holds it.
        KeyboardInterrupt
            On Ctrl-C; finished rows are written and marked.
        Exception
            Else as `featurize.extraction.run.run` does.
        """
        path = self.folder / file
        lock = WriteLock(path)
        with lock:
            say_unlocked(lock, self.request.say)
            index = self._index_reader.read()
            position = find_position(index, file)
            if position is None:  # its images had gone
                return
            keys = find_range(index, position)
            cache = open_if_exists(path, KEEP_ADVICE)
            self._add_layers(index)
            if cache is not None:
                self._check_layers(cache, index)
                if self._is_untouched(cache, keys):
                    self._count_part(file, cache)
                    return
            try:
                listing = self.images.list_range(keys, cache)
            except NoImagesError as error:
                self._drop_part(path, cache, lock, error)
                return
            for sentence in listing.skipped:
                self.request.say(sentence)
            diff = None if cache is None else diff_listing(listing, cache)
            if cache is not None and diff is not None:
                self._removals.refuse_rows(listing, cache, diff)
            if cache is None or not self._has_all_layers(cache):
                lock.require_held()
                self._register_layers(path)
            before = _identify(path)
            self.progress.begin_part(len(listing.paths), self.stats)
            grows = cache is not None and not self._has_all_layers(cache)
            self.setup.count_elsewhere = partial(self._count_elsewhere, file, grows)
            state = CacheState(path, lock, cache, diff)
            complete_locked(state, listing, self.setup, self.part_request, self.stats)
            self.tallies.n_changed += before != _identify(path)
            self._count_part(file, FeatureCache(path))

    def _count_part(self, file: str, cache: FeatureCache) -> None:
        self.tallies.parts[file] = PartTally.of(cache, is_complete=True)
        self.progress.end_part(cache.n_rows)
        self.progress.report(self.stats)

    def _add_layers(self, index: PartsIndex) -> None:
        """Take the layers that another process has added to the parts since."""
        names = {spec.key for spec in self.setup.layers}
        added = [LayerSpec.parse(name) for name in index.fingerprints if name not in names]
        if added:
            self.setup.add_layers(added)

    def _check_layers(self, cache: FeatureCache, index: PartsIndex) -> None:
        """Check that a part is of the same network, and has no layer that the whole lacks."""
        template = self.setup.cache
        if template is not None:
            difference = describe_difference(
                (cache.path, cache.extractor), (template.path, template.extractor)
            )
            if difference:
                raise FingerprintMismatchError(difference)
        names = {spec.key for spec in self.setup.layers}
        for name, info in cache.layers.items():
            fingerprint = index.fingerprints.get(name, info.fingerprint)
            if fingerprint != info.fingerprint:
                raise self._explain_mismatch(cache.path, name, info.fingerprint, fingerprint)
            if name not in names:
                raise FingerprintMismatchError(
                    f"{cache.path} has the layer {name}, which other parts of {self.folder} have "
                    f"not. Add it to all of them by --layers {info.spec.option}"
                )

    def _explain_mismatch(
        self, path: Path, name: str, fingerprint: str, others: str
    ) -> FingerprintMismatchError:
        return FingerprintMismatchError(
            f"{path} and the other parts of {self.folder} differ in the layer {name}: its "
            f"fingerprint is {fingerprint[:12]}..., theirs {others[:12]}.... All parts are made "
            "with one network and the same options; leave the options out, or give another -o"
        )

    def _has_all_layers(self, cache: FeatureCache) -> bool:
        return {spec.key for spec in self.setup.layers} == cache.layers.keys()

    def _register_layers(self, path: Path) -> None:
        infos = self.setup.describe_layers(self.setup.layers)
        fingerprints = {info.name: info.fingerprint for info in infos}
        index = self._index_reader.read()
        if dict(index.fingerprints) == fingerprints:
            return
        register_layers(
            self.folder,
            fingerprints,
            lambda name, others: self._explain_mismatch(path, name, fingerprints[name], others),
        )

    def _is_untouched(self, cache: FeatureCache, keys: KeyRange) -> bool:
        """Tell quickly whether a part is complete; False where it takes a closer look."""
        if self.request.retry.rehash or not self._has_all_layers(cache):
            return False
        left = partial_path(cache.path), in_flight_path(cache.path)
        if any(path.exists() for path in left) or not has_label_files(cache):
            return False
        pending = find_pending_rows(cache, np.ones(cache.n_rows, bool), self.request.retry)
        return not len(pending.compute) and self.images.is_unchanged(keys, cache)

    def _drop_part(
        self, path: Path, cache: FeatureCache | None, lock: WriteLock, error: NoImagesError
    ) -> None:
        """Give the range of a part that has no images to its neighbour."""
        lock.require_held()
        if cache is not None:
            self._removals.refuse_whole(cache)
        if not drop_part(self.folder, path.name):
            raise error
        self.request.say(f"{path.name} is no part any more: {error}")
        self.tallies.parts.pop(path.name, None)

    def _count_elsewhere(self, file: str, grows: bool) -> int:
        """Estimate how many images this process will run in further parts."""
        index = self._index_reader.read()
        missing = [
            position
            for position, part in enumerate(index.parts)
            if part.file != file and not (self.folder / part.file).exists()
        ]
        n_images = sum(self.images.count(find_range(index, position)) for position in missing)
        if grows:  # and so do the others
            n_images = self.progress.n_left
        return n_images // self._world_size


def _identify(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written or replaced; None if there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
