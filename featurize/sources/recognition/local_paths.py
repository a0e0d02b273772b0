"""What a path of this machine is: a folder, a file, several files, a pattern."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featurize.errors import CallError
from featurize.sources.folder import FolderSource
from featurize.sources.recognition.kinds import (
    COMPRESSED,
    COMPRESSED_HELP,
    CONTAINERS,
    IMAGE,
    LOOKED_FOR,
    FileChoice,
    OpenedSource,
    check_options,
    choose_kind,
    find_kind,
    make_source,
    refuse_unknown,
)
from featurize.sources.source import SourceOptions
from featurize.sources.stores.expansion import (
    MAX_NAMES,
    expand_braces,
    has_stars,
    split_pattern,
)
from featurize.sources.stores.local_store import LocalStore
from featurize.text import did_you_mean, list_first, to_printable

# What is looked at of a folder before it is listed; enough to see what it is for.
MAX_LOOKED_FOLDERS = 64
MAX_LOOKED_ENTRIES = 256  # of each


def open_path(text: str, options: SourceOptions, former: str = "") -> OpenedSource:
    """Open what a path leads to.

    Parameters
    ----------
    text : str
        A folder, a file, or files by a pattern.
    options : SourceOptions
    former : str
        What a folder was taken for before; see `choose_kind`.

    Returns
    -------
    OpenedSource

    Raises
    ------
    CallError
        If there is nothing, or nothing that is read.
    """
    path = Path(text)
    if os.path.isdir(path):  # noqa: PTH112 - false for any text that is no path
        return _open_folder(path, options, former)
    if not os.path.exists(path):  # noqa: PTH110
        folder, pattern = split_pattern(text)
        if pattern:
            return open_files(_expand(folder, pattern), options, is_named=False)
        raise CallError(
            f"{to_printable(path)} does not exist{_suggest(path)}; give the folder that holds the "
            "images, or an archive, table or list of them"
        )
    return open_files([text], options, is_named=True)


def open_files(paths: Sequence[str], options: SourceOptions, is_named: bool) -> OpenedSource:
    """Open one or several files of one kind.

    Parameters
    ----------
    paths : sequence of str
        They may be missing, which is said.
    options : SourceOptions
    is_named : bool
        Whether they were given by name, not by a pattern.

    Returns
    -------
    OpenedSource

    Raises
    ------
    CallError
        If one is missing or is no such file, or they are of several kinds.
    """
    paths = sorted(set(paths))
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113
    if missing:
        if os.path.isdir(missing[0]):  # noqa: PTH112
            raise CallError(
                f"{to_printable(missing[0])} is a folder; several IMAGES are files of one kind. "
                "Give the one folder that holds them all, or make a cache of each"
            )
        are = "is missing or no file" if len(missing) == 1 else "are missing or no files"
        raise CallError(f"{len(missing):,} of {len(paths):,} {are}: {list_first(missing)}")
    kind = check_kinds(paths, paths[0])
    parents = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - as it is spelt
    if len(parents) == 1:
        root, names = parents.pop() or ".", [Path(path).name for path in paths]
    else:
        absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - links stay
        root = os.path.commonpath([str(Path(path).parent) for path in absolute])
        names = [Path(path).relative_to(root).as_posix() for path in absolute]
    store = LocalStore(root, options.follow)
    files = [store.stat_file(name) for name in names]
    return OpenedSource(make_source(kind, store, files, is_named and len(files) == 1, options))


def check_kinds(names: Sequence[str], first: str) -> str:
    """Check that files are of one kind that is read, by their names.

    Parameters
    ----------
    names : sequence of str
    first : str
        The first one as it may be shown.

    Returns
    -------
    str
        The kind: of containers, or a list.

    Raises
    ------
    CallError
        If they are not.
    """
    kinds = {find_kind(name) for name in names}
    shown = to_printable(first)
    if kinds == {IMAGE}:
        if len(names) > 1:
            raise CallError(
                f"{shown} and the others are single images; give the folder that holds them, and "
                "choose with --include '*.jpg'"
            )
        name = to_printable(first.rpartition("/")[2])
        raise CallError(
            f"{shown} is one image; give the folder that holds it, with --include {name!r}"
        )
    if COMPRESSED in kinds:
        raise CallError(f"{shown}: {COMPRESSED_HELP}")
    if "" in kinds:
        raise CallError(f"{shown} is of no kind that is read; looked for {LOOKED_FOR}")
    if len(kinds) > 1:
        raise CallError(f"{shown} and the others are of several kinds: {', '.join(sorted(kinds))}")
    (kind,) = kinds
    if kind not in CONTAINERS and len(names) > 1:
        raise CallError(f"{shown} and the others are {len(names):,} lists; give one")
    return kind


def _open_folder(path: Path, options: SourceOptions, former: str) -> OpenedSource:
    choice, where = FileChoice(options), to_printable(path)
    if choice.is_asked:
        counts, names, is_complete = Counter[str](), list[str](), False
    else:
        counts, names, is_complete = _look_at_folder(path, choice)
    kind, note = choose_kind(counts, where, former)
    if not choice.is_asked and kind in (IMAGE, ""):
        if is_complete and not kind and any(find_kind(name) for name in names):
            raise refuse_unknown(where, [name for name in names if find_kind(name)])
        check_options(IMAGE, False, options)
        return OpenedSource(FolderSource(str(path), options), note)
    store = LocalStore(str(path), options.follow)
    files = [
        file
        for file in store.list_files()
        if find_kind(file.name) in CONTAINERS and choice.accepts(file.name)
    ]
    if not files:
        raise CallError(f"no file in {where} is left by --include and --exclude")
    if choice.is_asked:
        kind, _ = choose_kind(Counter(find_kind(file.name) for file in files), where)
    files = [file for file in files if find_kind(file.name) == kind]
    return OpenedSource(make_source(kind, store, files, False, choice.options), note)


def _look_at_folder(path: Path, choice: FileChoice) -> tuple[Counter[str], list[str], bool]:
    """Look at a bounded number of entries, breadth first.

    Returns how many files of each kind there are, some names, and whether that was everything.
    """
    counts, is_complete = Counter[str](), True
    names: list[str] = []
    folders = [(str(path), "")]
    n_looked = 0
    while n_looked < min(len(folders), MAX_LOOKED_FOLDERS):
        folder, prefix = folders[n_looked]
        n_looked += 1
        try:
            with os.scandir(folder) as entries:
                for i, entry in enumerate(entries):
                    if i == MAX_LOOKED_ENTRIES:
                        is_complete = False
                        break
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    elif entry.is_symlink() and entry.is_dir():
                        is_complete = False
                    elif choice.accepts(entry.name):
                        counts[find_kind(entry.name)] += 1
                        names.append(prefix + entry.name)
        except OSError:  # listing it says what is wrong
            is_complete = False
    return counts, sorted(names), is_complete and n_looked == len(folders)


def _expand(folder: str, pattern: str) -> list[str]:
    """Expand braces and stars; without stars, names may be missing."""
    paths: list[str] = []
    for name in expand_braces(pattern):
        if not has_stars(name):
            paths.append(_join(folder, name))
            continue
        for found in glob.iglob(name, root_dir=folder or ".", recursive=True):  # noqa: PTH207
            if os.path.isfile(_join(folder, found)):  # noqa: PTH113
                paths.append(_join(folder, found))
            if len(paths) > MAX_NAMES:
                raise CallError(f"a pattern stands for at most {MAX_NAMES:,} files")
    if not paths:
        raise CallError(f"no file matches {to_printable(_join(folder, pattern))}")
    return paths


def _join(folder: str, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118 - as it is spelt


def _suggest(path: Path) -> str:
    """Suggest the name beside a missing one that is most similar."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(10_000), entries, strict=False)]
    except OSError:
        return ""
    return did_you_mean(path.name, names)
