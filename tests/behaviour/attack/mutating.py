"""Bytes changed at random, always the same for the same seed."""

import numpy as np

KINDS = ("flip", "set", "cut", "insert", "delete", "repeat", "zero", "splice", "number")


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes of a file; `other` is one of the same kind, to splice from."""
    changed = bytearray(data)
    early = rng.random() < 0.4  # headers are where parsers go astray
    for _ in range(int(rng.integers(1, 9))):
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
    return bytes(changed)
