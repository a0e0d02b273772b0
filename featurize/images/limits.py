"""Bounds on the work of decoding one image, checked on its bytes before a decoder runs.

A few bytes can cause hours of work: scans that repeatedly cover all pixels, millions of chunks
that Pillow reads in Python, decoders written in Python. No sound image comes near these bounds; an
image beyond them is refused as too large.
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
MAX_TAGS, MAX_TAG_VALUES = 10_000, 500_000  # in a TIFF's directories
MAX_HEADER_BYTES, MAX_COMMENTS = 1 << 20, 1000  # of PBM, PGM and PPM
MAX_PLAIN_BYTES = 64 << 20  # of their plain (text) variants, which Pillow decodes in Python
MAX_RLE_BYTES = 32 << 20  # of run-length encoded BMP, also decoded in Python
MAX_SAMPLES = 20_000_000  # that Pillow decodes one by one, in Python
MAX_LZMA_BYTES = 256 << 20  # after decompression

# Bytes of one value of a tag, by the tag's type.
_TAG_TYPE_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), start=1))
_PYTHON_CODECS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
_BYTE_TAG_TYPES = frozenset({1, 2, 6, 7})  # Pillow does not unpack these into numbers
# Tags that point to directories: EXIF, GPS, interoperability.
_DIRECTORY_TAGS = (0x8769, 0x8825, 0xA005)


def check_bytes(data: bytes) -> None:
    """Refuse a file whose decoding would take too long.

    Parameters
    ----------
    data : bytes
        Content of an image file. A format without such bounds is accepted.

    Raises
    ------
    ImageUnreadableError
        If a bound is exceeded, with the reason "too large".
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
        Opened by Pillow, not loaded.
    data : bytes
        Content of the file.

    Raises
    ------
    ImageUnreadableError
        If a bound is exceeded, with the reason "too large".
    """
    codec = image.tile[0].codec_name if image.tile else ""
    n_pixels = image.size[0] * image.size[1]
    n_samples, n_bytes = n_pixels * len(image.getbands()), len(data)
    if image.mode == "1":
        n_samples = 0  # bits are decoded in blocks
    if (
        (codec == "ppm_plain" and n_bytes > MAX_PLAIN_BYTES)
        or (codec == "bmp_rle" and n_bytes > MAX_RLE_BYTES)
        or (codec in _PYTHON_CODECS and n_samples > MAX_SAMPLES and not is_scaled_ppm(image))
    ):
        raise _too_large(f"{n_samples:,} numbers in {n_bytes:,} bytes, decoded one by one")
    if codec == "libtiff":
        bits = max(image.tag_v2.get(258, (1,)))
        if image.info.get("compression") == "lzma" and n_samples * bits // 8 > MAX_LZMA_BYTES:
            raise _too_large(f"{n_pixels:,} pixels compressed by LZMA")


def _too_large(message: str) -> ImageUnreadableError:
    return ImageUnreadableError(message, TOO_LARGE)


# --- JPEG ----------------------------------------------------------------------------------

# Markers that Pillow takes to have no length field.
_STANDALONE_MARKERS = frozenset((0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER = 0xDA
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that ends a scan's data


def is_multi_scan(data: bytes) -> bool:
    """Tell whether a JPEG has several scans.

    Its decoder then keeps all coefficients in memory until the last scan.

    Parameters
    ----------
    data : bytes
        Content of a JPEG file.

    Returns
    -------
    bool
        True if the frame is progressive, or if the first scan lacks components.

    Raises
    ------
    ImageUnreadableError
        If the part before the first scan is too long, with the reason "too large".
    """
    n_components = 0
    for marker, position in _iter_segments(data):
        if marker in _FRAME_MARKERS:
            n_components = data[position + 9] if position + 9 < len(data) else 0
            if marker not in (0xC0, 0xC1, 0xC9):
                return True
        elif marker == _SCAN_MARKER:
            return position + 4 < len(data) and data[position + 4] < n_components
    return False


def _check_jpeg(data: bytes) -> None:
    if not is_multi_scan(data):
        return  # a second scan is an error
    # The two bytes never occur in the data of a scan. They do occur in thumbnails and in data that
    # phones append. So the cheap count comes first, and the exact one only if it is high.
    if data.count(b"\xff\xda") > MAX_SCANS and _count_scans(data) > MAX_SCANS:
        raise _too_large(f"more than {MAX_SCANS} scans")


def _iter_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers up to the first scan, and their positions in bytes."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position > MAX_SEGMENT_BYTES:
            break
        if position + 1 >= len(data):
            return
        if data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position += 1  # Pillow skips such bytes one by one
            continue
        marker = data[position + 1]
        yield marker, position
        if marker == _SCAN_MARKER:
            return
        position += (
            2
            if marker in _STANDALONE_MARKERS
            else 2 + int.from_bytes(data[position + 2 : position + 4])
        )
    raise _too_large("more before its first scan than any photograph has")


def _count_scans(data: bytes) -> int:
    """Count scans as a decoder does, up to the end of the image or one above the bound."""
    count, position = 0, 2
    while position + 3 < len(data):
        match = _SCAN_END.search(data, position)
        if match is None or data[match.start() + 1] == 0xD9:
            break
        position, marker = match.start(), data[match.start() + 1]
        count += marker == _SCAN_MARKER
        if count > MAX_SCANS:
            break
        position += (
            2
            if marker in _STANDALONE_MARKERS
            else 2 + int.from_bytes(data[position + 2 : position + 4])
        )
    return count


# --- PPM, PNG, GIF ------------------------------------------------------------------------


# Three numbers (two for bitmaps), with blanks and comments before each.
_PPM_HEADER = re.compile(rb"P\w++(?:(?:\s++|#[^\r\n]*+)*+[^\s#]++){2,3}")


def _check_ppm(data: bytes) -> None:
    if len(data) > MAX_HEADER_BYTES and not _PPM_HEADER.match(data[:MAX_HEADER_BYTES]):
        raise _too_large("a header of a megabyte")
    if data[1:2] in (b"1", b"2", b"3") and data.count(b"#") > MAX_COMMENTS:
        raise _too_large(f"more than {MAX_COMMENTS:,} remarks")


def _check_png(data: bytes) -> None:
    if len(data) // 12 <= MAX_CHUNKS:
        return
    position, chunk_length = 8, struct.Struct(">I")
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            return
        position += 12 + chunk_length.unpack_from(data, position)[0]
    raise _too_large(f"more than {MAX_CHUNKS:,} chunks")


def _check_gif(data: bytes) -> None:
    if len(data) <= MAX_BLOCKS:
        return
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        if position >= len(data):
            return
        if in_extension:  # the blocks of an extension, of which the last is empty
            in_extension = data[position] != 0
            position += 1 + data[position]
        elif data[position] in b",;":
            return
        else:
            in_extension = data[position] == ord("!")
            position += 2 if in_extension else 1
    raise _too_large(f"more than {MAX_BLOCKS:,} blocks before its first frame")


# --- TIFF ----------------------------------------------------------------------------------


def _check_tiff(data: bytes) -> None:
    n_values = n_bytes = 0
    for i_tag, (count, tag_type) in enumerate(_iter_tags(data)):
        n_bytes += count * _TAG_TYPE_BYTES.get(tag_type, 0)
        n_values += 0 if tag_type in _BYTE_TAG_TYPES else count
        if i_tag > MAX_TAGS or n_values > MAX_TAG_VALUES:
            raise _too_large("more tags than any photograph has")
    if n_bytes > 2 * len(data):  # many tags refer to the same bytes
        raise _too_large(f"tags of {n_bytes:,} bytes")


def _iter_tags(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield count and type of each tag of the first directory and of its subdirectories."""
    byte_order = "<" if data.startswith(b"II") else ">"
    is_big_tiff = 43 in data[2:4]
    pointer = struct.Struct(byte_order + ("Q" if is_big_tiff else "L"))
    entry_count = struct.Struct(byte_order + ("Q" if is_big_tiff else "H"))
    entry = struct.Struct(byte_order + ("HHQQ" if is_big_tiff else "HHLL"))
    try:
        offsets = [pointer.unpack_from(data, 8 if is_big_tiff else 4)[0]]
        seen: set[int] = set()
        while offsets:
            offset = offsets.pop()
            if offset in seen:
                continue
            seen.add(offset)
            (n_entries,) = entry_count.unpack_from(data, offset)
            offset += entry_count.size
            for i_entry in range(n_entries):
                tag, tag_type, count, value = entry.unpack_from(data, offset + i_entry * entry.size)
                yield count, tag_type
                if tag in _DIRECTORY_TAGS:
                    offsets.append(value)
    except struct.error:
        return  # truncated: Pillow will report it
