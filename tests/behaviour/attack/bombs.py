"""Images that want more than they are worth: few bytes, or much memory, or much time.

Each is built here from its format's own parts, as small as it can be on our disk.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import numpy as np
from PIL import Image

GIANT = 13_000  # a side; squared it is just below Pillow's own limit


def png(
    width: int, height: int, kind: int, *chunks: tuple[bytes, bytes], depth: int = 8
) -> Iterator[bytes]:
    """A PNG, chunk by chunk: kind 0 grey, 2 RGB, 3 palette, 6 RGBA."""
    yield b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    for name, data in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        yield struct.pack(">I", len(data)) + name + data
        yield struct.pack(">I", zlib.crc32(name + data))


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated: the same block again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    rest = deflate.compress(bytes(count & 0xFFFFF)) + deflate.flush()
    adler = (count % 65_521) << 16 | 1
    return b"\x78\xda" + block * (count >> 20) + rest + struct.pack(">I", adler)


def rgba_png(side: int = GIANT) -> bytes:
    """All transparent: 0.7 GB of pixels in 0.7 MB."""
    return b"".join(png(side, side, 6, (b"IDAT", zeros(side * (4 * side + 1)))))


def palette_png(side: int = GIANT) -> bytes:
    """A palette of one colour that is transparent."""
    chunks = (b"PLTE", b"\xff\0\0"), (b"tRNS", b"\0"), (b"IDAT", zeros(side * (side + 1)))
    return b"".join(png(side, side, 3, *chunks))


def huge_png(width: int, height: int) -> bytes:
    """Declares so many pixels, and has a few."""
    return b"".join(png(width, height, 2, (b"IDAT", zeros(1 << 16))))


def many_chunks_png(count: int = 2_000_000) -> bytes:
    """A sound picture with millions of empty private chunks before it."""
    empty = struct.pack(">I", 0) + b"prIv" + struct.pack(">I", zlib.crc32(b"prIv"))
    parts = list(png(8, 8, 2, (b"IDAT", zeros(8 * 25))))
    return b"".join([*parts[:3], empty * count, *parts[3:]])


def text_png(kind: bytes, inflated: int = 1 << 30) -> bytes:
    """A text or a colour profile that inflates to a gigabyte."""
    data = (b"Comment\0\0" if kind == b"zTXt" else b"profile\0\0") + zeros(inflated)
    return b"".join(png(8, 8, 2, (kind, data), (b"IDAT", zeros(8 * 25))))


def lossless_webp(side: int = GIANT) -> bytes:
    """A few dozen bytes: every code has one symbol, so that a pixel takes no bits at all."""
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> k & 1 for k in range(count))

    put(0x2F, 8)
    put(side - 1, 14)
    put(side - 1, 14)
    put(1, 1)  # alpha is used
    put(0, 3)  # version
    put(0, 1)  # no transform
    put(0, 1)  # no colour cache
    put(0, 1)  # no meta codes
    for _ in range(5):  # green, red, blue, alpha, distance: simple codes of one symbol
        put(1, 1)
        put(0, 1)
        put(0, 1)
        put(0, 1)
    data = bytes(
        sum(bit << k for k, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8)
    )
    data += bytes(len(data) % 2)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A flat picture whose first scan of AC coefficients comes thousands of times.

    Its codes have one symbol each. One bit says that a block's mean is that of the block before,
    fifteen say that the next 27,306 blocks have nothing more.
    """

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    def scan(first: int, last: int, data: bytes) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, first, last, 0])) + data

    one_code = bytes([1, *[0] * 15])
    blocks = ((side + 7) // 8) ** 2
    runs = ("0" + "10" * 7) * (blocks // 27_306 + 1)
    runs += "0" * (-len(runs) % 8)
    ends = bytes(int(runs[k : k + 8], 2) for k in range(0, len(runs), 8))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, bytes([0, *[1] * 64])),
            segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])),
            segment(0xC4, bytes([0x00]) + one_code + b"\x00"),
            segment(0xC4, bytes([0x10]) + one_code + b"\xe0"),
            scan(0, 0, bytes(blocks // 8 + 1)),
            scan(1, 5, ends) * scans,
            b"\xff\xd9",
        ]
    )


def plain_pnm(kind: int, width: int, height: int) -> bytes:
    """Numbers written out: P1 bits, P3 colours."""
    numbers = b"1" * (width * height) if kind == 1 else b"9 " * (3 * width * height)
    most = b"" if kind == 1 else b"255\n"
    return b"P%d\n%d %d\n" % (kind, width, height) + most + numbers


def long_gif(frames: int = 20_000) -> bytes:
    """A picture, then frames and comments without end."""
    file = BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    picture = data[data.index(b",") : -1]
    comment = b"\x21\xfe\x01x\0"
    return data[:-1] + (picture + comment * 8) * frames + b";"


def shared_strips_tiff(side: int = 4000) -> bytes:
    """Every strip of a large picture is the same few bytes."""
    strip = zeros(3 * side * 8)
    strips = side // 8
    tags = [
        (256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, 0), (259, 3, 1, 8), (262, 3, 1, 2),
        (273, 4, strips, 0), (277, 3, 1, 3), (278, 4, 1, 8), (279, 4, strips, 0),
    ]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    places = {258: after, 273: after + 6, 279: after + 6 + 4 * strips}
    start = after + 6 + 8 * strips
    directory = struct.pack("<H", len(tags))
    for tag, kind, count, value in tags:
        directory += struct.pack("<HHII", tag, kind, count, places.get(tag, value))
    values = struct.pack("<3H", 8, 8, 8) + struct.pack("<I", start) * strips
    values += struct.pack("<I", len(strip)) * strips
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values + strip


def photograph(seed: int, width: int = 1500, height: int = 1000) -> bytes:
    """Something like a photograph: soft shapes and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-8, 9, (height, width, 1), dtype=np.int16)
    file = BytesIO()
    Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


# Must be refused in any case: more memory than 2 GB, or time without end.
REFUSED: dict[str, Callable[[], bytes]] = {
    "34 bytes.webp": lossless_webp,
    "again 34 bytes.webp": lambda: lossless_webp(13_300),
    "scans.jpg": lambda: progressive_jpeg(9_000, 12_000),
    "more scans.jpg": lambda: progressive_jpeg(GIANT, 8_000),
    "plain.ppm": lambda: plain_pnm(3, 4_200, 4_200),
    "plain.pbm": lambda: plain_pnm(1, GIANT, GIANT),
    "chunks.png": many_chunks_png,
    "huge.png": lambda: huge_png(60_000, 60_000),
    "thin.png": lambda: huge_png(178_000_000, 1),
    "text.png": lambda: text_png(b"zTXt"),
}
# May be decoded, if that is done with thrift; else refused.
EITHER: dict[str, Callable[[], bytes]] = {
    "rgba.png": rgba_png,
    "palette.png": palette_png,
    "profile.png": lambda: text_png(b"iCCP"),
    "frames.gif": long_gif,
    "strips.tif": shared_strips_tiff,
}
