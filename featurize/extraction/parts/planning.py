"""The index of a cache of parts: made once, extended for further images, without emptied parts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import (
    INDEX_NAME,
    PartRange,
    PartsIndex,
    has_index,
    index_lock,
    read_index,
    write_index,
)
from featurize.errors import CacheBusyError
from featurize.extraction.completion.label_table import remove_label_files
from featurize.extraction.completion.listed_images import Globs
from featurize.extraction.completion.partial_cache import list_partial_paths, open_if_exists
from featurize.extraction.parts.part_images import KeyRange, PartImages
from featurize.extraction.single_cache import KEEP_ADVICE
from featurize.files import to_write_error
from featurize.pipeline.in_flight import in_flight_path


class IndexReader:
    """Reads the index again whenever it was replaced.

    Parameters
    ----------
    folder : Path
        The cache of parts.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX_NAME
        self._version = (0, 0)
        self._index: PartsIndex | None = None

    def read(self) -> PartsIndex:
        """Read the index as it is now.

        Returns
        -------
        PartsIndex

        Raises
        ------
        CacheFormatError
            If it is gone or damaged.
        """
        if not self._path.is_file():
            return read_index(self._path.parent)  # raises
        status = self._path.stat()
        version = status.st_ino, status.st_mtime_ns
        if self._index is None or version != self._version:
            self._index, self._version = read_index(self._path.parent), version
        return self._index


def find_range(index: PartsIndex, position: int) -> KeyRange:
    """Find the range of a part.

    Parameters
    ----------
    index : PartsIndex
    position : int
        In `PartsIndex.parts`.

    Returns
    -------
    KeyRange
    """
    following = index.parts[position + 1 : position + 2]
    return KeyRange(index.parts[position].first, following[0].first if following else None)


def find_position(index: PartsIndex, file: str) -> int | None:
    """Find a part by the name of its file.

    Parameters
    ----------
    index : PartsIndex
    file : str

    Returns
    -------
    int or None
        Its position; None if it is none of the parts, as after its images had gone.
    """
    files = [part.file for part in index.parts]
    return files.index(file) if file in files else None


def plan_parts(images: PartImages, part_rows: int, globs: Globs) -> PartsIndex:
    """Plan a new cache of parts.

    Parameters
    ----------
    images : PartImages
    part_rows : int
        About how many rows each part is to have.
    globs : (tuple of str, tuple of str)

    Returns
    -------
    PartsIndex
    """
    firsts = ["", *images.cut(KeyRange(""), part_rows, None)]
    parts = (PartRange(f"part-{number:05d}.h5", first) for number, first in enumerate(firsts))
    return PartsIndex(tuple(parts), part_rows, include=globs[0], exclude=globs[1])


def make_index(folder: Path, plan: PartsIndex) -> PartsIndex:
    """Write the index of a new cache of parts, unless another process was quicker.

    Parameters
    ----------
    folder : Path
        It is made if it does not exist.
    plan : PartsIndex

    Returns
    -------
    PartsIndex
        As it stands now.

    Raises
    ------
    DiskFullError, OutputError
        If it cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise to_write_error(error, folder) from error
    lock = index_lock(folder)
    with lock:
        if not has_index(folder):
            lock.require_held()
            write_index(folder, plan)
        return read_index(folder)


def extend_index(
    folder: Path, index: PartsIndex, images: PartImages, part_rows: int | None
) -> PartsIndex:
    """Record another `part_rows`, and plan parts for images that the last part has no room for.

    A last part that another process holds is not cut: that process may be about to allocate it.

    Parameters
    ----------
    folder : Path
    index : PartsIndex
        As it was read.
    images : PartImages
    part_rows : int, optional
        As asked for.

    Returns
    -------
    PartsIndex
        As it stands now.

    Raises
    ------
    CacheFormatError
        If the last part is not a cache.
    DiskFullError, OutputError
        If there is something to change and it cannot be written.
    """

    def extend(index: PartsIndex) -> PartsIndex:
        index = replace(index, part_rows=part_rows or index.part_rows)
        last = open_if_exists(folder / index.parts[-1].file, KEEP_ADVICE)
        for first in list(images.cut(KeyRange(index.parts[-1].first), index.part_rows, last)):
            part = PartRange(_name_part(folder, index), first)
            index = replace(index, parts=(*index.parts, part))
        return index

    if extend(index) == index:
        return index
    lock = index_lock(folder)
    with lock:
        lock.require_held()
        index = read_index(folder)
        try:
            with WriteLock(folder / index.parts[-1].file):
                changed = extend(index)
        except CacheBusyError:
            changed = replace(index, part_rows=part_rows or index.part_rows)
        if changed != index:
            write_index(folder, changed)
    return changed


def retract_parts(folder: Path, files: Sequence[str]) -> None:
    """Take planned parts out of the index that were not made, so that readers need not miss them.

    Parameters
    ----------
    folder : Path
    files : sequence of str
        The last parts of the index, in its order. One that was made or is held stays, and so do
        those before it.

    Raises
    ------
    DiskFullError, OutputError
        If the index cannot be written.
    """
    lock = index_lock(folder)
    for file in reversed(files):
        try:
            with WriteLock(folder / file), lock:
                lock.require_held()
                index = read_index(folder)
                if (folder / file).exists() or index.parts[-1].file != file:
                    return
                write_index(folder, replace(index, parts=index.parts[:-1]))
        except CacheBusyError:
            return


def _name_part(folder: Path, index: PartsIndex) -> str:
    """Name a further part; a file that is left from a part of that name is passed over."""
    number = int(index.new_file_name()[5:-3])
    while (folder / f"part-{number:05d}.h5").exists():
        number += 1
    return f"part-{number:05d}.h5"


def record_globs(folder: Path, globs: Globs) -> None:
    """Record the globs of a run that has ended, if they are others.

    Parameters
    ----------
    folder : Path
    globs : (tuple of str, tuple of str)

    Raises
    ------
    DiskFullError, OutputError
        If the index cannot be written.
    """
    index = read_index(folder)
    if (index.include, index.exclude) == globs:
        return
    lock = index_lock(folder)
    with lock:
        lock.require_held()
        write_index(folder, replace(read_index(folder), include=globs[0], exclude=globs[1]))


def drop_part(folder: Path, file: str) -> bool:
    """Give the range of a part to its neighbour, and remove its files.

    The caller holds the part's lock, which stays: a process may be waiting for it.

    Parameters
    ----------
    folder : Path
    file : str

    Returns
    -------
    bool
        Whether it was dropped; the only part is not.

    Raises
    ------
    DiskFullError, OutputError
        If the index cannot be written.
    """
    lock = index_lock(folder)
    with lock:
        lock.require_held()
        index = read_index(folder)
        parts = [part for part in index.parts if part.file != file]
        if not parts:
            return False
        parts[0] = replace(parts[0], first="")
        write_index(folder, replace(index, parts=tuple(parts)))
    path = folder / file
    remove_label_files(path)
    for each in (path, *list_partial_paths(path), in_flight_path(path)):
        with suppress(OSError):
            each.unlink(missing_ok=True)
    return True


def register_layers(
    folder: Path, fingerprints: dict[str, str], explain: Callable[[str, str], Exception]
) -> None:
    """Record the fingerprints of the layers that a part is about to have, or check them.

    Parameters
    ----------
    folder : Path
    fingerprints : dict of str to str
        By dataset name.
    explain : callable
        Makes the error of a layer with another fingerprint, of its name and that of the others.

    Raises
    ------
    FingerprintMismatchError
        If the index has another fingerprint of a layer.
    DiskFullError, OutputError
        If the index cannot be written.
    """
    lock = index_lock(folder)
    with lock:
        lock.require_held()
        index = read_index(folder)
        for name, fingerprint in index.fingerprints.items():
            if fingerprints.get(name, fingerprint) != fingerprint:
                raise explain(name, fingerprint)
        if not fingerprints.keys() <= index.fingerprints.keys():
            merged = {**index.fingerprints, **fingerprints}
            write_index(folder, replace(index, fingerprints=merged))
