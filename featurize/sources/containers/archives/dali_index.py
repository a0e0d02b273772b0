"""Index files of NVIDIA DALI, which lie beside the shards of WebDataset.

Written by ``wds2idx`` (https://github.com/NVIDIA/DALI/blob/main/tools/wds2idx.py). The first line
is a version and the number of samples. Each further line is a sample: for every component
``COMPONENT OFFSET SIZE NAME`` in version 1.2, and the same without name in version 1.1.
"""

import tarfile

from featurize.errors import FeaturizeError, ImageUnreadableError
from featurize.images.reasons import VANISHED
from featurize.sources.containers.archives.archive_listing import clean_name, is_image_name
from featurize.sources.containers.archives.samples import MAX_LABEL_BYTES
from featurize.sources.containers.archives.tar_index import (
    HEADER_NAME_BYTES,
    ShardIndex,
    find_header_problem,
    find_label_kind,
)
from featurize.sources.containers.archives.window_file import merge_ranges
from featurize.sources.stores.store import Store, StoredFile

MAX_INDEX_BYTES = 64 << 20
MAX_HEADERS_BYTES = 8 << 10  # between two members; with more, members are missing
MAX_LABEL_REQUESTS = 32  # with more the shard itself is read, in one

_Member = tuple[str, int, int]


class UntrueIndexError(FeaturizeError, ValueError):
    """An index file that does not fit its shard."""


def index_by_dali(store: Store, shard: StoredFile) -> ShardIndex | None:
    """Index a shard by the index file beside it, if there is one.

    The headers of the first and the last image are compared, and so is that nothing follows; the
    others are when they are read.

    Parameters
    ----------
    store : Store
    shard : StoredFile

    Returns
    -------
    ShardIndex, optional
        None if there is no index file, it has no names, or the shard has labels that would take
        many requests.

    Raises
    ------
    UntrueIndexError
        If the index file does not fit the shard.
    ImageUnreadableError
        If the shard cannot be read.
    """
    try:
        data = store.read_range(
            shard.name.removesuffix(".tar") + ".idx", 0, min(MAX_INDEX_BYTES, shard.size) + 1
        )
    except ImageUnreadableError as error:
        if error.reason == VANISHED:
            return None
        raise UntrueIndexError("it cannot be read") from error
    members = _parse_index(data, shard.size)
    if members is None:
        return None
    _check_headers(store, shard, members)
    index = ShardIndex()
    for name, offset, size in members:
        if is_image_name(name):
            index.add_image(name, offset, size)
    labels = [
        (name, offset, size)
        for name, offset, size in members
        if 0 < size <= MAX_LABEL_BYTES.get(find_label_kind(name), 0)
    ]
    ranges = merge_ranges([(offset, offset + size) for _, offset, size in labels])
    if len(ranges) > MAX_LABEL_REQUESTS:
        return None
    for start, stop, indices in ranges:
        data = store.read_range(shard.name, start, stop)
        for name, offset, size in (labels[i] for i in indices):
            index.add_label(name, data[offset - start : offset - start + size])
    return index


def _parse_index(data: bytes, shard_size: int) -> list[_Member] | None:
    if len(data) > MAX_INDEX_BYTES:
        raise UntrueIndexError("it is too large")
    try:
        header, *lines = data.decode("ascii").splitlines()
        version, _, count = header.partition(" ")
    except ValueError as error:
        raise UntrueIndexError("it is no index file") from error
    if version == "v1.1":
        return None
    if version != "v1.2" or count != str(len(lines)):
        raise UntrueIndexError("it is no index file of version 1.2, or cut short")
    members: list[_Member] = []
    end = 0
    for line in lines:
        fields = line.split(" ")
        if len(fields) % 4:
            raise UntrueIndexError("a line of it has names with spaces, or is damaged")
        for i in range(0, len(fields), 4):
            component, offset_text, size_text, name = fields[i : i + 4]
            if not (offset_text.isdecimal() and size_text.isdecimal() and len(size_text) < 16):
                raise UntrueIndexError("a line of it is damaged")
            offset, size, name = int(offset_text[:20]), int(size_text), clean_name(name)
            is_next = tarfile.BLOCKSIZE <= offset - end <= MAX_HEADERS_BYTES
            if (
                offset % tarfile.BLOCKSIZE
                or not is_next
                or not name.endswith(component)
                or len(name) >= HEADER_NAME_BYTES
            ):
                raise UntrueIndexError("its entries do not follow each other as in a tar file")
            end = offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            members.append((name, offset, size))
    if not members or end > shard_size:
        raise UntrueIndexError("the shard is shorter")
    return members


def _check_headers(store: Store, shard: StoredFile, members: list[_Member]) -> None:
    block = tarfile.BLOCKSIZE
    for name, offset, size in (members[0], members[-1]):
        header = store.read_range(shard.name, offset - block, offset)
        if find_header_problem(header, name, size):
            raise UntrueIndexError("the shard has other members")
    _, offset, size = members[-1]
    end = offset + -(-size // block) * block
    if end < shard.size and store.read_range(shard.name, end, end + block).strip(b"\0"):
        raise UntrueIndexError("the shard has further members")
