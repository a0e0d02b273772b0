"""Bytes changed at random, always the same for the same seed."""

import struct
import zlib

import numpy as np

KINDS = ("flip", "set", "cut", "insert", "delete", "repeat", "zero", "splice", "number")


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A few changes of a file; `other` is one of the same kind, to splice from.

    The checksums of a PNG are mostly made right again, or nothing behind them would be reached.
    """
    changed = bytearray(data)
    early = rng.random() < 0.4  # headers are where parsers go astray
    for _ in range(min(int(rng.geometric(0.5)), 8)):
        if not changed:
            break
        end = min(len(changed), 128) if early else len(changed)
        at = int(rng.integers(end))
        length = int(rng.integers(1, 33))
        match KINDS[rng.integers(len(KINDS))]:
            case "flip":
                changed[at] ^= 1 << int(rng.integers(8))
            case "set":
                changed[at] = int(rng.integers(256))
            case "cut":
                if rng.random() < 0.3:
                    del changed[at:]
            case "insert":
                changed[at:at] = rng.bytes(length)
            case "delete":
                del changed[at : at + length]
            case "repeat":
                changed[at:at] = changed[at : at + length] * int(rng.integers(1, 9))
            case "zero":
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case "splice":
                begin = int(rng.integers(len(other)))
                changed[at : at + length] = other[begin : begin + length]
            case "number":  # a count or a length that is far too large, or negative
                size = int(rng.choice([2, 4, 8]))
                number = int(rng.choice([0, 1, 0x7F, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, -1]))
                order = "little" if rng.random() < 0.5 else "big"
                whole = (number & (1 << 8 * size) - 1).to_bytes(size, order)
                changed[at : at + size] = whole
    whole = bytes(changed)
    return with_sums(whole) if whole.startswith(b"\x89PNG") and rng.random() < 0.7 else whole


def with_sums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them."""
    found, at = [png[:8]], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if at + 12 + length > len(png):
            break
        body = png[at + 4 : at + 8 + length]
        found.append(png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(found) + png[at:]
