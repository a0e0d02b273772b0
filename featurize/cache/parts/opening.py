"""Open the files of a cache: a single one, or the parts of a folder, held against each other."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from featurize.cache.format import Extractor
from featurize.cache.layout import probe_layouts
from featurize.cache.parts.cache_file import PATH_COLUMN, CacheFile, OpenFiles
from featurize.cache.parts.index import INDEX_NAME, PartsIndex, read_index
from featurize.cache.parts.joined_files import JoinedFiles
from featurize.errors import CacheFormatError

MAX_OPEN_PARTS = 64


def open_parts(
    folder: Path, names: Collection[str] | None = None
) -> tuple[PartsIndex, JoinedFiles]:
    """Open the parts of a folder.

    Parameters
    ----------
    folder : Path
    names : collection of str, optional
        Names of the parts to open; by default all of them.

    Returns
    -------
    index : PartsIndex
    joined : JoinedFiles
        The parts that were opened.

    Raises
    ------
    FileNotFoundError
        If a part is missing.
    CacheFormatError
        If the folder has no index, a part is no feature cache, has keys out of its range, or has
        other layers than another part.
    CacheUnreachableError
        If a part cannot be read now.
    """
    index = read_index(folder)
    while True:
        try:
            return index, _open_files(folder, index, names)
        except (FileNotFoundError, CacheFormatError):
            former, index = index, read_index(folder)
            if index == former:
                raise  # else a run has changed the index meanwhile


def list_cache_files(path: Path) -> list[Path]:
    """List the files whose states tell whether a cache is as it was, be they there or not.

    Parameters
    ----------
    path : Path
        The cache file, or the folder of its parts.

    Returns
    -------
    list of Path
        The file; or the index of a folder, then the parts.

    Raises
    ------
    CacheFormatError
        If the folder has no index, or a damaged one.
    """
    if not path.is_dir():
        return [path]
    return [path / INDEX_NAME, *(path / part.file for part in read_index(path).parts)]


def find_missing_parts(folder: Path, index: PartsIndex) -> list[str]:
    """Find the parts that stand in the index and have no file.

    Parameters
    ----------
    folder : Path
    index : PartsIndex

    Returns
    -------
    list of str
        Their names.
    """
    return [part.file for part in index.parts if not (folder / part.file).exists()]


def describe_missing_part(folder: Path, name: str) -> str:
    """Describe that a part is missing, and what makes it.

    Parameters
    ----------
    folder : Path
    name : str

    Returns
    -------
    str
        A sentence.
    """
    return (
        f"{folder / name} is missing: it was never made, or is gone; "
        f"`featurize run` with the same images and -o {folder}/ makes it"
    )


def describe_difference(part: tuple[Path, Extractor], other: tuple[Path, Extractor]) -> str:
    """Describe that two parts were made by different networks, and what to do.

    Parameters
    ----------
    part, other : (Path, Extractor)
        The file, and what made its features.

    Returns
    -------
    str
        Sentences; empty if the same made both.
    """
    differences = part[1].differences(other[1])
    if not differences:
        return ""
    name, (own_value, other_value) = next(iter(differences.items()))
    return (
        f"{part[0]} was made otherwise than {other[0]}: {name} is {own_value!r} and not "
        f"{other_value!r}. One of them is of another cache: remove it and make it by "
        "`featurize run`"
    )


def _open_files(folder: Path, index: PartsIndex, names: Collection[str] | None) -> JoinedFiles:
    missing = [name for name in find_missing_parts(folder, index) if names is None or name in names]
    if missing:
        raise FileNotFoundError(describe_missing_part(folder, missing[0]))
    chosen = [
        number for number, part in enumerate(index.parts) if names is None or part.file in names
    ]
    if not chosen:
        raise FileNotFoundError(describe_missing_part(folder, index.parts[0].file))
    probe_layouts([folder / index.parts[number].file for number in chosen])
    open_files = OpenFiles(MAX_OPEN_PARTS)
    files: list[CacheFile] = []
    for number in chosen:
        file = CacheFile(folder / index.parts[number].file, open_files)
        _check_range(file, index, number)
        if files:
            _check_same_layers(file, files[0])
        files.append(file)
    return JoinedFiles(files, [index.parts[number].first for number in chosen])


def _check_range(file: CacheFile, index: PartsIndex, number: int) -> None:
    """Check that a part's first and last key lie in its range."""
    lowest, highest = file.read_rows(PATH_COLUMN, np.array([0, file.n_rows - 1])).tolist()
    first = index.parts[number].first.encode()
    is_last = number + 1 == len(index.parts)
    end = None if is_last else index.parts[number + 1].first.encode()
    if lowest >= first and (end is None or highest < end):
        return
    key = lowest if lowest < first else highest
    raise CacheFormatError(
        f"{file.path} has the image {key.decode(errors='backslashreplace')!r}, which is not in the "
        f"range of this part in {file.path.with_name(INDEX_NAME)}: one of the two is from another "
        "cache. Put the right one there, or remove the part and make it again by `featurize run`"
    )


def _check_same_layers(file: CacheFile, other: CacheFile) -> None:
    difference = describe_difference(
        (file.path, file.layout.extractor), (other.path, other.layout.extractor)
    )
    if difference:
        raise CacheFormatError(difference)
    layers, other_layers = file.layout.layers, other.layout.layers
    if list(layers.items()) == list(other_layers.items()):
        return
    raise CacheFormatError(
        f"{file.path} has the layers {_list_layers(file)}, and {other.path} has "
        f"{_list_layers(other)}: a run that adds layers is at work or was stopped. Run it again, "
        "and all parts have the same"
    )


def _list_layers(file: CacheFile) -> str:
    return ", ".join(f"{info.name} ({info.dtype[1:]})" for info in file.layout.layers.values())
