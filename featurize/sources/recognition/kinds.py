"""Kinds of files by their names, and what a folder of several kinds is taken for."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from featurize.errors import CallError
from featurize.sources.bucket import is_image_name
from featurize.sources.folder import IMAGE_SUFFIXES
from featurize.sources.patterns import GlobFilter
from featurize.sources.source import ImageSource, SourceOptions
from featurize.sources.stores.local_store import LocalStore
from featurize.sources.stores.remote_store import RemoteStore
from featurize.sources.stores.store import StoredFile
from featurize.text import to_printable

IMAGE, TAR, ZIP, PARQUET, ARROW, LIST = "image", "tar", "zip", "parquet", "arrow", "list"
COMPRESSED = "compressed"
CONTAINERS = {TAR: ".tar", ZIP: ".zip", PARQUET: ".parquet", ARROW: ".arrow"}
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
LOOKED_FOR = " ".join([*CONTAINERS.values(), *LIST_SUFFIXES, *sorted(IMAGE_SUFFIXES)])
COMPRESSED_HELP = (
    "an image in it can only be reached by unpacking all before it: unpack it, and give the folder "
    "or the .tar"
)

# Options that mean nothing for a kind.
_REFUSED = {
    IMAGE: ("column", "split", "component", "root", "scratch"),
    TAR: ("column", "root"),
    ZIP: ("column", "split", "component", "root", "scratch"),
    PARQUET: ("component", "root", "scratch"),
    ARROW: ("component", "root", "scratch"),
    LIST: ("component", "scratch"),
}
_WORDS = {
    IMAGE: "folder of images",
    TAR: "tar archive",
    ZIP: "zip archive",
    PARQUET: "table",
    ARROW: "table",
    LIST: "list of images",
}
# By what a source calls itself in `ImageSource.describe`.
_FORMER = {
    "folder": (IMAGE,),
    "bucket": (IMAGE,),
    "tar": (TAR,),
    "zip": (ZIP,),
    "table": (PARQUET, ARROW),
}


class OpenedSource(NamedTuple):
    """A source, and what to say of it.

    Attributes
    ----------
    source : ImageSource
    note : str
        What else lies there and is not read; empty if there is nothing.
    """

    source: ImageSource
    note: str = ""


def find_kind(name: str) -> str:
    """Tell the kind of a file by its suffix.

    Parameters
    ----------
    name : str
        A name, a path or a glob.

    Returns
    -------
    str
        Empty if it is unknown.
    """
    base = name.rpartition("/")[2].lower()
    for kind, suffix in CONTAINERS.items():
        if base.endswith(suffix) and base != suffix:
            # What the library of Hugging Face keeps beside a data set is no part of it.
            is_cache = kind == ARROW and base.startswith("cache-")
            return "" if is_cache else kind
    if base.endswith(LIST_SUFFIXES):
        return LIST
    if base.endswith(_COMPRESSED):
        return COMPRESSED
    return IMAGE if is_image_name(base) else ""


class FileChoice:
    """Which files of a folder are asked for by globs that end in a container's suffix.

    Parameters
    ----------
    options : SourceOptions

    Attributes
    ----------
    is_asked : bool
        Whether there is such a glob to include.
    options : SourceOptions
        With the other globs, which are of images.
    """

    def __init__(self, options: SourceOptions) -> None:
        include = tuple(glob for glob in options.include if find_kind(glob) in CONTAINERS)
        exclude = tuple(glob for glob in options.exclude if find_kind(glob) in CONTAINERS)
        self._filter = GlobFilter(include, exclude)
        self.is_asked = bool(include)
        self.options = replace(
            options,
            include=tuple(glob for glob in options.include if glob not in include),
            exclude=tuple(glob for glob in options.exclude if glob not in exclude),
        )

    def accepts(self, name: str) -> bool:
        """Tell whether a file may be read.

        Parameters
        ----------
        name : str

        Returns
        -------
        bool
            True for what is no container, unless containers are asked for.
        """
        if find_kind(name) in CONTAINERS:
            return self._filter.accepts(name)
        return not self.is_asked


def choose_kind(counts: Counter[str], where: str, former: str = "") -> tuple[str, str]:
    """Choose what a folder is taken for: what there is most of, containers or images.

    An archive that was unpacked beside itself leaves more images than archives; a data set with a
    picture in its description more shards than pictures.

    Parameters
    ----------
    counts : Counter of str
        Number of files by kind.
    where : str
        The folder, for messages.
    former : str
        What it was taken for before, by `ImageSource.describe`; it is that again if it can be.

    Returns
    -------
    kind : str
        `IMAGE`, or that of its containers; empty if there is neither.
    note : str
        What else lies there.

    Raises
    ------
    CallError
        If there are containers of several kinds.
    """
    for kind in _FORMER.get(former, ()):
        if counts[kind]:
            return kind, ""
    kinds = [kind for kind in CONTAINERS if counts[kind]]
    if not kinds:
        return (IMAGE if counts[IMAGE] else ""), ""
    suffixes = [CONTAINERS[kind] for kind in kinds]
    if counts[IMAGE] > sum(counts[kind] for kind in kinds):
        return IMAGE, (
            f"{where} is read as a folder of images; its {' and '.join(suffixes)} files are not "
            f"read: `--include '*{suffixes[0]}'` takes those"
        )
    if len(kinds) > 1:
        raise CallError(
            f"{where} holds {' and '.join(suffixes)} files; choose with --include "
            f"'*{suffixes[0]}', or --exclude '*{suffixes[0]}'"
        )
    note = ""
    if counts[IMAGE]:
        note = (
            f"{where} is read for its {suffixes[0]} files; images beside them are not read: "
            f"`--exclude '*{suffixes[0]}'` takes those"
        )
    return kinds[0], note


def make_source(
    kind: str,
    store: LocalStore | RemoteStore,
    files: Iterable[StoredFile],
    is_single: bool,
    options: SourceOptions,
) -> ImageSource:
    """Make the source of containers, or of a list.

    Parameters
    ----------
    kind : str
        A key of `CONTAINERS`, or `LIST`.
    store : LocalStore or RemoteStore
    files : iterable of StoredFile
        At least one; one for a list.
    is_single : bool
        Whether one file was given by its name.
    options : SourceOptions

    Returns
    -------
    ImageSource

    Raises
    ------
    CallError
        If an option means nothing for the kind.
    """
    ordered = tuple(sorted(files))
    if kind == PARQUET and is_single and _has_paths(store, ordered[0].name):
        kind = LIST
    check_options(kind, store.is_remote, options)
    if kind == TAR:
        from featurize.sources.containers.tar_source import TarSource

        return TarSource(store, ordered, is_single, options)
    if kind == ZIP:
        from featurize.sources.containers.zip_source import ZipSource

        return ZipSource(store, ordered, is_single, options)
    if kind == LIST:
        from featurize.sources.manifest import ManifestSource

        return ManifestSource(store, ordered[0], options)
    from featurize.sources.containers.table_source import TableSource

    return TableSource(store, ordered, is_single, options)


def check_options(kind: str, is_remote: bool, options: SourceOptions) -> None:
    """Check that no option is given that means nothing for a kind of source.

    Parameters
    ----------
    kind : str
    is_remote : bool
    options : SourceOptions

    Raises
    ------
    CallError
        If there is one.
    """
    word = _WORDS[kind] if not (is_remote and kind == IMAGE) else "bucket"
    options.refuse(word, *_REFUSED[kind])
    if is_remote:
        options.refuse(f"{word} behind a URL", "follow")
    else:
        options.refuse(f"{word} of this machine", "scratch")


def _has_paths(store: LocalStore | RemoteStore, name: str) -> bool:
    """Tell whether a Parquet file lists images, rather than holding their bytes."""
    try:
        import pyarrow.parquet
        from pyarrow import types

        with store.open_file(name) as file:
            schema = pyarrow.parquet.read_schema(file)
    except Exception:  # missing, damaged: reading it says so
        return False

    def holds_bytes(kind: object) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)  # type: ignore[attr-defined]
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return not any(holds_bytes(field.type) for field in schema)


def refuse_unknown(where: str, names: Sequence[str]) -> CallError:
    """Explain that nothing in a folder is read.

    Parameters
    ----------
    where : str
    names : sequence of str
        Some of its files.

    Returns
    -------
    CallError
        To be raised by the caller.
    """
    for name in names:
        kind = find_kind(name)
        if kind == COMPRESSED:
            return CallError(f"{where} holds {to_printable(name)}: {COMPRESSED_HELP}")
        if kind == LIST:
            return CallError(
                f"{where} holds no image, but a list: {to_printable(name)}; give the list itself"
            )
    if not names:
        return CallError(f"there is nothing in {where}; check how it is spelt")
    return CallError(
        f"{where} holds {to_printable(names[0])} and the like, and no image; looked for "
        f"{LOOKED_FOR}"
    )
