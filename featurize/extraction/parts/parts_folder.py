"""Which outputs are a cache of parts."""

import os
import re
from pathlib import Path

from featurize.cache.parts.index import INDEX_NAME, has_index
from featurize.errors import CallError

# What a run that was killed before it had an index may leave.
_LEFT_BEHIND = re.compile(rf"{re.escape(INDEX_NAME)}\..*|part-\d+\.h5\..*")


def find_parts_folder(output: str | os.PathLike[str], part_rows: int | None) -> Path | None:
    """Find the folder of parts that an output means.

    It is one that has an index; or else one that is new or empty, where it ends with a slash or
    `part_rows` is given.

    Parameters
    ----------
    output : path
        The argument of ``-o``.
    part_rows : int, optional
        As asked for.

    Returns
    -------
    Path or None
        The folder, which may not exist yet, free of links; None for a single file.

    Raises
    ------
    CallError
        If a folder holds other things, a file stands where a folder is meant, or the folder above
        is missing.
    """
    text, path = os.fspath(output), Path(output)
    is_named_as_folder = text.endswith(("/", os.sep))
    if path.is_dir():
        if not has_index(path) and not _is_empty(path):
            if (path / "part-00000.h5").exists():
                raise CallError(
                    f"{path} holds parts and no {INDEX_NAME}, which says which images they have. "
                    "Put it back from a copy, or give another -o; each part can be read by itself"
                )
            raise _make_folder_error(path, "A cache of parts wants a folder that is new or empty")
        if not (has_index(path) or is_named_as_folder or part_rows is not None):
            raise _make_folder_error(path, f"A cache of parts has a slash: -o {path}/")
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and is_named_as_folder:
        raise CallError(f"{path} is a file, and no folder of parts; give another -o")
    if path.exists() and part_rows is not None:
        raise CallError(
            f"{path} is one file, and --part-rows is for a cache of parts; leave it out, or give "
            f"a folder: -o {path.with_suffix('.parts')}/"
        )
    if not is_named_as_folder and part_rows is None:
        return None
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise CallError(f"there is no folder {path.parent} to make {path.name} in; make it first")
    return path


def _make_folder_error(path: Path, advice: str) -> CallError:
    return CallError(
        f"{path} is a folder; give the cache a file name: -o {path / 'cache.h5'}. {advice}"
    )


def _is_empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return all(_LEFT_BEHIND.fullmatch(entry.name) for entry in entries)
    except OSError as error:
        raise CallError(f"{folder} cannot be listed: {error.strerror}; give another -o") from error
