"""Index a tar shard: where its images lie, and what it says of them, from headers alone."""

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.sources.containers.archives.archive_listing import (
    REPEATED,
    clean_name,
    is_image_name,
)
from featurize.sources.containers.archives.samples import (
    MAX_LABEL_BYTES,
    parse_label,
    split_name,
)
from featurize.sources.containers.archives.window_file import TarHeaderFile

TAIL_BYTES = 64 << 10  # looked at after the end mark
HEADER_NAME_BYTES = 90  # a header has room for so many, with any ./ before them

_MAGICS = {
    b"\x1f\x8b": ("gzip", "gzip -dc {0} > PLAIN.tar"),
    b"BZh": ("bzip2", "bzip2 -dc {0} > PLAIN.tar"),
    b"\xfd7zXZ\0": ("xz", "xz -dc {0} > PLAIN.tar"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc {0} > PLAIN.tar"),
    b"PK\3\4": ("zip", "mv {0} ARCHIVE.zip"),
}
_KINDS = {
    tarfile.LNKTYPE: "it is a hard link; links in archives are not followed",
    tarfile.SYMTYPE: "it is a link; links in archives are not followed",
    tarfile.DIRTYPE: "it is a folder",
}
SPARSE = "it is a sparse file"
SPECIAL = "it is a device, a pipe or of an unknown kind"
_ERRORS = (
    tarfile.TarError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    RecursionError,
    struct.error,
)


class DamagedTarError(FeaturizeError, ValueError):
    """A tar file cannot be read any further; what lies before is sound."""


@dataclass
class ShardIndex:
    """What a shard holds.

    Attributes
    ----------
    images : dict of str to (int, int)
        Offset and size of each member with an image's suffix, by its cleaned name.
    labels : dict of str to dict of str to str
        Text by column, by sample.
    skipped : list of (str, str)
        Members that were skipped, and why.
    problem : str
        Why the shard could not be read to its end; empty if it was.
    notice : str
        What else there is to say of it.
    """

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""
    notice: str = ""

    def add_image(self, name: str, offset: int, size: int) -> None:
        """Add an image; of several with the same name the last one counts.

        Parameters
        ----------
        name : str
            Cleaned.
        offset, size : int
        """
        if name in self.images:
            self.skipped.append((name, REPEATED))
        self.images[name] = offset, size

    def add_label(self, name: str, data: bytes) -> None:
        """Add what a small member says of its sample.

        Parameters
        ----------
        name : str
            Of a member of which `find_label_kind` knows the kind.
        data : bytes
            Its content.
        """
        sample, kind = split_name(name)
        try:
            texts = parse_label(kind, data)
        except ValueError:
            self.skipped.append((name, "no label can be read from it"))
            return
        if kind == "cls":
            self.labels.setdefault(sample, {}).update(texts)
        else:  # a label of its own file goes before
            self.labels[sample] = texts | self.labels.get(sample, {})


def find_label_kind(name: str) -> str:
    """Tell whether a member says something of an image.

    Parameters
    ----------
    name : str
        Cleaned.

    Returns
    -------
    str
        ``cls`` or ``json``; empty if it does not.
    """
    sample, component = split_name(name)
    is_hidden = sample.endswith("/") or not sample
    return component if component in MAX_LABEL_BYTES and not is_hidden else ""


def index_tar(file: TarHeaderFile, name: str) -> ShardIndex:
    """Index a tar file, reading its headers and small label members alone.

    Parameters
    ----------
    file : TarHeaderFile
    name : str
        Of the shard, for messages.

    Returns
    -------
    ShardIndex
        Of all that lies before a damage.

    Raises
    ------
    ImageUnreadableError
        If the file cannot be read.
    """
    index = ShardIndex()
    index.problem = _find_foreign_kind(file.peek(0, tarfile.BLOCKSIZE), name)
    if index.problem:
        return index
    try:
        for member in _iterate_members(file):
            _add_member(index, file, member)
        index.notice = _look_behind_end(file)
    except DamagedTarError as error:
        index.problem = str(error)
        if file.size >= 0:
            index.images = {
                image: (offset, size)
                for image, (offset, size) in index.images.items()
                if offset + size <= file.size
            }
    return index


def _find_foreign_kind(block: bytes, name: str) -> str:
    if not block:
        return "it is empty"
    for magic, (kind, remedy) in _MAGICS.items():
        if block.startswith(magic):
            remedy = remedy.format(name.rpartition("/")[2])
            if kind == "zip":
                return f"it is a zip archive, whatever its name: {remedy}"
            return f"it is compressed with {kind}, so nothing can be read from its middle; {remedy}"
    return ""


def _iterate_members(file: TarHeaderFile) -> Iterator[tarfile.TarInfo]:
    last_offset = -1
    try:
        # The library reads the file by `read`, `seek` and `tell` alone.
        source = cast(Any, file)
        archive = tarfile.TarFile(
            fileobj=source, mode="r", encoding="utf-8", errors="surrogateescape"
        )
        while (member := archive.next()) is not None:
            # A negative size would lead back, and round and round.
            if member.offset <= last_offset or member.size < 0:
                raise tarfile.ReadError("a header leads back")
            last_offset = member.offset
            cast(Any, archive).members.clear()  # or it would keep them all
            file.start_member()
            yield member
    except ImageUnreadableError:
        raise
    except _ERRORS as error:
        if last_offset < 0:
            raise DamagedTarError("it is no tar file") from error
        raise DamagedTarError(_describe_cut(file, file.tell(), str(error))) from error
    end = file.peek(archive.offset, tarfile.BLOCKSIZE)
    if end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE:
        raise DamagedTarError(_describe_cut(file, archive.offset, ""))


def _describe_cut(file: TarHeaderFile, position: int, problem: str) -> str:
    if 0 <= file.size <= position + tarfile.BLOCKSIZE or "unexpected end" in problem:
        return "it is cut short; images before the cut are taken"
    return f"it is damaged about byte {position:,}; images before that are taken"


def _look_behind_end(file: TarHeaderFile) -> str:
    tail = file.peek(file.tell(), TAIL_BYTES)
    if tail.strip(b"\0"):
        return "more follows after its end mark, which is not read; pack its parts into one tar"
    return ""


def _add_member(index: ShardIndex, file: TarHeaderFile, member: tarfile.TarInfo) -> None:
    name = clean_name(member.name)
    if is_image_name(name):
        if not member.isreg() or member.issparse():
            kind = SPARSE if member.isreg() else _KINDS.get(member.type, SPECIAL)
            index.skipped.append((name, kind))
        else:
            index.add_image(name, member.offset_data, member.size)
    elif (kind := find_label_kind(name)) and member.isreg() and not member.issparse():
        if member.size > MAX_LABEL_BYTES[kind]:
            index.skipped.append((name, f"it has more than {MAX_LABEL_BYTES[kind]:,} bytes"))
        else:
            index.add_label(name, file.peek(member.offset_data, member.size))


def find_header_problem(block: bytes, name: str, size: int) -> str:
    """Check that the header before an image's bytes is that of the image.

    Parameters
    ----------
    block : bytes
        The 512 bytes before.
    name : str
        Of the image in the archive, cleaned.
    size : int
        In bytes.

    Returns
    -------
    str
        What is wrong; empty if it is the image's. A name that is long or not ASCII may
        lie elsewhere, and is not compared.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except _ERRORS:
        return "no header lies before it"
    is_comparable = name.isascii() and len(name) < HEADER_NAME_BYTES
    if header.size != size or (is_comparable and clean_name(header.name) != name):
        return "another header lies before it"
    return ""
