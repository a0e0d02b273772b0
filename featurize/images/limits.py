"""Bounds on the work of one image, told from its bytes before a decoder sees them.

A few bytes can ask for hours: scans that go over all pixels again and again, millions of chunks
that Pillow walks through in Python, decoders written in Python. No sound image comes near these
bounds; what lies beyond is too large.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

from featurize.errors import ImageUnreadableError
from featurize.images.reasons import TOO_LARGE
from featurize.images.transforms import is_scaled_ppm

MAX_SCANS = 500  # of a JPEG; a progressive one has about ten
MAX_SEGMENTS, MAX_SEGMENT_BYTES = 20_000, 32 << 20  # before a JPEG's first scan
MAX_CHUNKS = 250_000  # of a PNG; libpng writes one for 8 kB
MAX_BLOCKS = 200_000  # before a GIF's first frame
MAX_TAGS, MAX_TAG_VALUES = 10_000, 500_000  # of a TIFF's directories
MAX_HEADER_BYTES, MAX_COMMENTS = 1 << 20, 1000  # of PPM and its kin
MAX_PLAIN_BYTES = 64 << 20  # of those as text, which Pillow decodes in Python
MAX_RLE_BYTES = 32 << 20  # of BMP's runs, likewise
MAX_SAMPLES = 20_000_000  # decoded one by one, in Python
MAX_LZMA_BYTES = 256 << 20  # decompressed

# Bytes of one of a tag's numbers, by its type.
_TAG_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))
_PYTHON_CODECS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
_BYTE_TAG_TYPES = frozenset({1, 2, 6, 7})  # kept as bytes
_DIRECTORY_TAGS = (
    0x8769,
    0x8825,
    0xA005,
)  # tags that point to directories: EXIF, GPS, interoperability


def check_bytes(data: bytes) -> None:
    """Refuse a file whose decoding would take too long.

    Parameters
    ----------
    data : bytes

    Raises
    ------
    ImageUnreadable
        With the reason "too large".
    """
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n"):
        _check_png(data)
    elif data.startswith(b"GIF8"):
        _check_gif(data)
    elif data.startswith(b"P"):
        _check_ppm(data)
    elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        _check_tiff(data)


def check_opened_image(image: Any, data: bytes) -> None:
    """Refuse an opened image whose decoder would take too long.

    Parameters
    ----------
    image : Image
        Opened, not loaded.
    data : bytes
        The file.

    Raises
    ------
    ImageUnreadable
        With the reason "too large".
    """
    codec = image.tile[0].codec_name if image.tile else ""
    pixels = image.size[0] * image.size[1]
    numbers, size = pixels * len(image.getbands()), len(data)
    if image.mode == "1":
        numbers = 0  # bits are taken by the block
    if (
        (codec == "ppm_plain" and size > MAX_PLAIN_BYTES)
        or (codec == "bmp_rle" and size > MAX_RLE_BYTES)
        or (codec in _PYTHON_CODECS and numbers > MAX_SAMPLES and not is_scaled_ppm(image))
    ):
        raise _too_large(f"{numbers:,} numbers in {size:,} bytes, decoded one by one")
    if codec == "libtiff":
        bits = max(image.tag_v2.get(258, (1,)))
        if image.info.get("compression") == "lzma" and numbers * bits // 8 > MAX_LZMA_BYTES:
            raise _too_large(f"{pixels:,} pixels compressed by LZMA")


def _too_large(what: str) -> ImageUnreadableError:
    return ImageUnreadableError(what, TOO_LARGE)


# --- JPEG ----------------------------------------------------------------------------------

# Markers that stand alone, in the eyes of Pillow.
_STANDALONE_MARKERS = frozenset((0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER = 0xDA
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that ends a scan's data


def is_multi_scan(data: bytes) -> bool:
    """Whether a JPEG's coefficients are all kept until its last scan: it has several."""
    components = 0
    for marker, at in _iter_segments(data):
        if marker in _FRAME_MARKERS:
            components = data[at + 9] if at + 9 < len(data) else 0
            if marker not in (0xC0, 0xC1, 0xC9):
                return True
        elif marker == _SCAN_MARKER:
            return at + 4 < len(data) and data[at + 4] < components
    return False


def _check_jpeg(data: bytes) -> None:
    if not is_multi_scan(data):
        return  # a second scan is an error
    # In a scan's data the two bytes never stand beside each other; in a thumbnail they do, and
    # in what phones append. So they are counted first, and looked into where they are many.
    if data.count(b"\xff\xda") > MAX_SCANS and _count_scans(data) > MAX_SCANS:
        raise _too_large(f"more than {MAX_SCANS} scans")


def _iter_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers up to the first scan, and where they stand."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        if at > MAX_SEGMENT_BYTES:
            break
        if at + 1 >= len(data):
            return
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1  # Pillow steps over such bytes one by one
            continue
        marker = data[at + 1]
        yield marker, at
        if marker == _SCAN_MARKER:
            return
        at += 2 if marker in _STANDALONE_MARKERS else 2 + int.from_bytes(data[at + 2 : at + 4])
    raise _too_large("more before its first scan than any photograph has")


def _count_scans(data: bytes) -> int:
    """Count scans as a decoder does, up to the end of the image or one too many."""
    count, at = 0, 2
    while at + 3 < len(data):
        found = _SCAN_END.search(data, at)
        if found is None or data[found.start() + 1] == 0xD9:
            break
        at, marker = found.start(), data[found.start() + 1]
        count += marker == _SCAN_MARKER
        if count > MAX_SCANS:
            break
        at += 2 if marker in _STANDALONE_MARKERS else 2 + int.from_bytes(data[at + 2 : at + 4])
    return count


# --- PPM, PNG, GIF ------------------------------------------------------------------------


# Three numbers, for bits two, with blanks and remarks before each.
_PPM_HEADER = re.compile(rb"P\w++(?:(?:\s++|#[^\r\n]*+)*+[^\s#]++){2,3}")


def _check_ppm(data: bytes) -> None:
    if len(data) > MAX_HEADER_BYTES and not _PPM_HEADER.match(data[:MAX_HEADER_BYTES]):
        raise _too_large("a header of a megabyte")
    if data[1:2] in (b"1", b"2", b"3") and data.count(b"#") > MAX_COMMENTS:
        raise _too_large(f"more than {MAX_COMMENTS:,} remarks")


def _check_png(data: bytes) -> None:
    if len(data) // 12 <= MAX_CHUNKS:
        return
    at, length = 8, struct.Struct(">I")
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            return
        at += 12 + length.unpack_from(data, at)[0]
    raise _too_large(f"more than {MAX_CHUNKS:,} chunks")


def _check_gif(data: bytes) -> None:
    if len(data) <= MAX_BLOCKS:
        return
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    inside = False
    for _ in range(MAX_BLOCKS):
        if at >= len(data):
            return
        if inside:  # an extension's blocks, ended by an empty one
            inside = data[at] != 0
            at += 1 + data[at]
        elif data[at] in b",;":
            return
        else:
            inside = data[at] == ord("!")
            at += 2 if inside else 1
    raise _too_large(f"more than {MAX_BLOCKS:,} blocks before its first frame")


# --- TIFF ----------------------------------------------------------------------------------


def _check_tiff(data: bytes) -> None:
    numbers = taken = 0
    for tags, (count, kind) in enumerate(_iter_tags(data)):
        taken += count * _TAG_TYPE_BYTES.get(kind, 0)
        numbers += 0 if kind in _BYTE_TAG_TYPES else count
        if tags > MAX_TAGS or numbers > MAX_TAG_VALUES:
            raise _too_large("more tags than any photograph has")
    if taken > 2 * len(data):  # the same bytes over and over
        raise _too_large(f"tags of {taken:,} bytes")


def _iter_tags(data: bytes) -> Iterator[tuple[int, int]]:
    """Count and type of each tag of the first directory, and of those inside it."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    pointer = struct.Struct(order + ("Q" if big else "L"))
    head = struct.Struct(order + ("Q" if big else "H"))
    entry = struct.Struct(order + ("HHQQ" if big else "HHLL"))
    try:
        places = [pointer.unpack_from(data, 8 if big else 4)[0]]
        seen: set[int] = set()
        while places:
            at = places.pop()
            if at in seen:
                continue
            seen.add(at)
            (entries,) = head.unpack_from(data, at)
            at += head.size
            for k in range(entries):
                tag, kind, count, value = entry.unpack_from(data, at + k * entry.size)
                yield count, kind
                if tag in _DIRECTORY_TAGS:
                    places.append(value)
    except struct.error:
        return  # cut short: Pillow finds out
