"""The index of a cache of parts, ``parts.json``: which file has which range of keys."""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurize.cache.lock import WriteLock
from featurize.errors import CacheFormatError
from featurize.files import atomic_write

INDEX_NAME = "parts.json"
FORMAT, FORMAT_VERSION = "headgraft-parts", "1.0"
DEFAULT_PART_ROWS = 1_000_000
MAX_INDEX_BYTES = 256 << 20
_FILE_NAME = re.compile(r"part-[0-9]{5,9}\.h5")


@dataclass(frozen=True)
class PartRange:
    """A part: the images whose keys are in one range.

    Attributes
    ----------
    file : str
        Name of the cache in the folder, as ``part-00000.h5``.
    first : str
        The range begins here and ends where that of the next part begins. Empty for the first
        part: its range has no lower end, and that of the last part no upper one.
    """

    file: str
    first: str


@dataclass(frozen=True)
class PartsIndex:
    """Which part has which images, of a cache of parts.

    Attributes
    ----------
    parts : tuple of PartRange
        In the order of their ranges, at least one. Their numbers need not ascend.
    part_rows : int
        About how many rows a new part has.
    fingerprints : mapping of str to str
        Of each layer by dataset name, from the first part that was made. All parts have the same.
    include, exclude : tuple of str
        The globs by which images were selected. A part that has no image of theirs may have been
        made with others.
    """

    parts: tuple[PartRange, ...]
    part_rows: int = DEFAULT_PART_ROWS
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def find_part(self, key: str) -> int:
        """Find the part in whose range a key is.

        Parameters
        ----------
        key : str
            Of an image.

        Returns
        -------
        int
            Position in `parts`.
        """
        return bisect_right(self.parts, key, key=lambda part: part.first) - 1

    def new_file_name(self) -> str:
        """Name a further part: its number was not used before.

        Returns
        -------
        str
        """
        last = max((int(part.file[5:-3]) for part in self.parts), default=-1)
        return f"part-{last + 1:05d}.h5"


def has_index(folder: Path) -> bool:
    """Tell whether a folder is a cache of parts.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    bool
    """
    return (folder / INDEX_NAME).is_file()


def index_lock(folder: Path) -> WriteLock:
    """Return the lock that whoever changes the index holds.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    WriteLock
        It waits for another process, which holds it for a moment only.
    """
    return WriteLock(folder / INDEX_NAME, waits=True)


def read_index(folder: Path) -> PartsIndex:
    """Read and check the index of a cache of parts.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    PartsIndex

    Raises
    ------
    CacheFormatError
        If there is none, or it is damaged or of a later format.
    """
    path = folder / INDEX_NAME
    if folder.is_file():
        raise CacheFormatError(f"{folder} is one file, and no cache of parts, which is a folder")
    if not path.is_file():
        raise CacheFormatError(
            f"{folder} is not a feature cache: it is a folder without {INDEX_NAME}, which a cache "
            "of parts has"
        )
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CacheFormatError(f"{path} is damaged: it has more than {MAX_INDEX_BYTES:,} bytes")
    try:
        return _parse_index(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheFormatError(f"{path} is damaged: {error}") from error


def _parse_index(content: Any) -> PartsIndex:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("it is not the index of a cache of parts")
    version = content["format_version"]
    if not isinstance(version, str) or version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise ValueError(f"its format is {version!r}; this release reads {FORMAT_VERSION}")
    parts = tuple(PartRange(part["file"], part["first"]) for part in content["parts"])
    for previous, part in zip((None, *parts), parts, strict=False):
        if not isinstance(part.file, str) or not _FILE_NAME.fullmatch(part.file):
            raise ValueError(f"{part.file!r} is not the name of a part")
        is_ordered = part.first > previous.first if previous else part.first == ""
        if not isinstance(part.first, str) or not is_ordered:
            raise ValueError(f"the range of {part.file} is out of order")
        if b"\0" in part.first.encode():  # which refuses what is no text, too
            raise ValueError(f"the range of {part.file} begins at a text with a zero byte")
    if not parts or len({part.file for part in parts}) < len(parts):
        raise ValueError("it has no parts, or one of them twice")
    part_rows, fingerprints = content["part_rows"], content.get("fingerprints", {})
    if type(part_rows) is not int or part_rows < 1:
        raise ValueError("part_rows is no number of rows")
    if not isinstance(fingerprints, dict) or not all(
        isinstance(text, str) for text in fingerprints.values()
    ):
        raise ValueError("its fingerprints are not texts")
    globs = [content.get(name, []) for name in ("include", "exclude")]
    for patterns in globs:
        if not isinstance(patterns, list) or not all(isinstance(text, str) for text in patterns):
            raise ValueError("its globs are not texts")
    return PartsIndex(parts, part_rows, fingerprints, *map(tuple, globs))


def write_index(folder: Path, index: PartsIndex) -> None:
    """Write the index, whole or not at all; the caller holds `index_lock`.

    Parameters
    ----------
    folder : Path
    index : PartsIndex

    Raises
    ------
    DiskFullError, OutputError
        If it cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "part_rows": index.part_rows,
        "fingerprints": dict(index.fingerprints),
        "include": list(index.include),
        "exclude": list(index.exclude),
        "parts": [{"file": part.file, "first": part.first} for part in index.parts],
    }
    with atomic_write(folder / INDEX_NAME) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
