"""Caches that say what is not so: each function changes a sound cache into one."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

Lie = Callable[[Path], None]
LAYER = "features/stage4"


def changed(change: Callable[[h5py.File], object]) -> Lie:
    """The cache with something changed through HDF5."""

    def lie(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return lie


def instead(name: str, make: Callable[[h5py.File], object]) -> Lie:
    """Another object of a name."""

    def change(file: h5py.File) -> None:
        del file[name]
        make(file)

    return changed(change)


def attribute(where: str, name: str, value: object) -> Lie:
    def change(file: h5py.File) -> None:
        (file[where] if where else file).attrs[name] = value

    return changed(change)


def fifo(path: Path) -> str:
    """A file that whoever opens it waits for ever."""
    target = path.with_name("waits for ever")
    if not target.exists():
        os.mkfifo(target)
    return str(target)


def elsewhere(path: Path) -> None:
    target = fifo(path)
    with h5py.File(path, "r+") as file:
        del file[LAYER]
        file[LAYER] = h5py.ExternalLink(target, "/x")


def external_group(path: Path) -> None:
    target = fifo(path)
    with h5py.File(path, "r+") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink(target, "/images")


def external_storage(path: Path) -> None:
    target = fifo(path)
    with h5py.File(path, "r+") as file:
        shape = file[LAYER].shape
        del file[LAYER]
        file.create_dataset(LAYER, shape, "<f4", external=[(target, 0, h5py.h5f.UNLIMITED)])


def virtual(path: Path) -> None:
    target = fifo(path)
    with h5py.File(path, "r+") as file:
        shape = file[LAYER].shape
        layout = h5py.VirtualLayout(shape, "<f4")
        layout[:] = h5py.VirtualSource(target, "x", shape)
        del file[LAYER]
        file.create_virtual_dataset(LAYER, layout)


def deep(file: h5py.File) -> None:
    group = file.create_group("more")
    for _ in range(5000):
        group = group.create_group("g")


def many(file: h5py.File) -> None:
    for k in range(9500):
        file.create_group(f"more/{k}")


def circle(file: h5py.File) -> None:
    file["features/more"] = file["features"]


def paths(change: Callable[[list[bytes]], None]) -> Lie:
    """The same column with other bytes in it."""

    def edit(file: h5py.File) -> None:
        column = file["images/path"]
        found = [name.ljust(column.dtype.itemsize, b"\0") for name in column[:].tolist()]
        change(found)
        width = column.dtype.itemsize
        raw = b"".join(name[:width].ljust(width, b"\0") for name in found)
        file.flush()
        with open(file.filename, "r+b") as raw_file:
            raw_file.seek(column.id.get_offset())
            raw_file.write(raw)

    return changed(edit)


def put(index: int, name: bytes) -> Lie:
    return paths(lambda found: found.__setitem__(index, name))


def moved(name: str, to: Callable[[h5py.File], int]) -> Lie:
    """An array that is said to lie at another place of the file."""

    def lie(path: Path) -> None:
        with h5py.File(path, "r") as file:
            before, after = file[name].id.get_offset(), to(file)
        data = path.read_bytes()
        # Of the message that says where a contiguous array lies: version, kind, place.
        old, new = (struct.pack("<BBQ", 3, 1, at & (1 << 64) - 1) for at in (before, after))
        assert data.count(old) == 1, f"{name}: {data.count(old)} places hold its offset"
        path.write_bytes(data.replace(old, new))

    return lie


def raw(change: Callable[[bytes], bytes]) -> Lie:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def element(name: str, index: int, value: object) -> Lie:
    return changed(lambda file: file[name].__setitem__(index, value))


def like(name: str, **options: object) -> Lie:
    """The same numbers kept in another way."""

    def make(file: h5py.File) -> None:
        old = file[name]
        data, attributes = old[:], dict(old.attrs)
        del file[name]
        given = {"data": data} | options
        if callable(given.get("data")):
            given["data"] = given["data"](data)
        new = file.create_dataset(name, **given)
        new.attrs.update(attributes)

    return changed(make)


def offset(name: str) -> Callable[[h5py.File], int]:
    return lambda file: file[name].id.get_offset()


COMPOUND = np.dtype([("a", "<f4"), ("b", "<i4")])
RAGGED = h5py.vlen_dtype(np.float32)

# What `featurize verify` has to refuse.
REFUSED: dict[str, Lie] = {
    "soft link": changed(lambda f: f.__setitem__("features/x", h5py.SoftLink("/" + LAYER))),
    "soft link to itself": changed(lambda f: f.__setitem__("x", h5py.SoftLink("/x"))),
    "external link": elsewhere,
    "external group": external_group,
    "external storage": external_storage,
    "virtual": virtual,
    "second name": changed(lambda f: f.__setitem__("features/x", f[LAYER])),
    "circle": changed(circle),
    "references": instead(LAYER, lambda f: f.create_dataset(LAYER, (18, 4), h5py.ref_dtype)),
    "regions": changed(lambda f: f.create_dataset("x", (3,), h5py.regionref_dtype)),
    "reference attribute": changed(
        lambda f: f.attrs.create("x", f["images"].ref, dtype=h5py.ref_dtype)
    ),
    "variable text": changed(lambda f: f.create_dataset("x", (3,), h5py.string_dtype())),
    "variable rows": instead(LAYER, lambda f: f.create_dataset(LAYER, (18,), RAGGED)),
    "compound": changed(lambda f: f.create_dataset("x", (3,), COMPOUND)),
    "compound attribute": changed(lambda f: f.attrs.create("x", np.zeros(1, COMPOUND))),
    "opaque": changed(lambda f: f.create_dataset("x", (3,), np.dtype("V7"))),
    "stored type": changed(lambda f: f.__setitem__("x", np.dtype("<f8"))),
    "chunked": like(LAYER, chunks=(2, 4)),
    "compressed": like(LAYER, compression="gzip"),
    "big-endian": like(LAYER, dtype=">f4"),
    "double": like(LAYER, dtype="<f8"),
    "whole numbers": like(LAYER, dtype="<i4"),
    "three axes": like(LAYER, data=lambda x: x[:, :, None]),
    "fewer rows": like(LAYER, data=lambda x: x[:-1]),
    "no numbers": like(LAYER, data=lambda x: x[:, :0]),
    "unaligned": like(LAYER, data=lambda x: x.copy()),
    "status of four bytes": like("images/status", dtype="<i4"),
    "short sha256": like("images/sha256", data=lambda x: x[:, :16]),
    **{
        f"n_rows {value}": attribute("", "n_rows", value)
        for value in (2**62, -1, 0, 3, 1.5, "many", np.zeros(3))
    },
    **{
        f"without {name}": changed(lambda f, name=name: f.__delitem__(name))
        for name in (
            "extractor",
            "images",
            "features",
            "images/path",
            "images/status",
            "images/sha256",
        )
    },
    "no features": instead("features", lambda f: f.create_group("features")),
    "path not UTF-8": put(-1, b"c/\xff\xfe"),
    "absolute path": put(0, b"/etc/passwd"),
    "path out": put(0, b"../x.png"),
    "path out, later": put(-1, b"c/../../x.png"),
    "empty path": put(0, b""),
    "NUL in a path": put(-1, b"c/x\0y.png"),
    "empty part": put(-1, b"c//x.png"),
    "dot part": put(0, b"./a.png"),
    "paths out of order": paths(lambda found: found.reverse()),
    "path repeated": paths(lambda found: found.__setitem__(1, found[0])),
    "layer on layer": moved(LAYER, offset("features/stage2")),
    "layer on sha256": moved(LAYER, offset("images/sha256")),
    "sha256 on layer": moved("images/sha256", offset(LAYER)),
    "layer on the header": moved(LAYER, lambda f: 0),
    "offset 2^63": moved(LAYER, lambda f: 1 << 63),
    "offset -1": moved(LAYER, lambda f: -1),
    "offset at the end": moved(LAYER, lambda f: os.path.getsize(f.filename) & ~4095),
    "fingerprint": attribute(LAYER, "fingerprint", "0" * 64),
    "fingerprint of another layer": changed(
        lambda f: f[LAYER].attrs.__setitem__(
            "fingerprint", f["features/stage2"].attrs["fingerprint"]
        )
    ),
    "weights": attribute("extractor", "weights_sha256", "0" * 64),
    "backbone": attribute("extractor", "backbone", "resnet50"),
    "precision": attribute("extractor", "precision", "fp16"),
    "layer": attribute(LAYER, "layer", "stage1"),
    "pool": attribute(LAYER, "pool", "max"),
    "no recipe": attribute("extractor", "preprocess", "{}"),
    "recipe without end": attribute("extractor", "preprocess", "[" * 60_000),
    "recipe not JSON": attribute("extractor", "preprocess", "{'resize': 3}"),
    "recipe of NaN": attribute("extractor", "preprocess", '{"resize": NaN, "crop": 3}'),
    "map_shape of text": attribute(LAYER, "map_shape", "8x8"),
    "version 2": attribute("", "format_version", "2.0"),
    "version x": attribute("", "format_version", "x"),
    "unknown feature": attribute("", "required_features", '["sparse"]'),
    "features without end": attribute("", "required_features", "[" * 60_000),
    "no format": changed(lambda f: f.attrs.__delitem__("format")),
    "many objects": changed(lambda f: [f.create_group(f"more/{k}") for k in range(11_000)]),
    "status 7": element("images/status", 0, 7),
    "failed for no reason": element("images/status", 0, 2),
    "NaN": element(LAYER, 2, np.nan),
    "cut": raw(lambda data: data[: len(data) // 2]),
    "cut at the last page": raw(lambda data: data[:-4096]),
    "empty": raw(lambda data: b""),
    "another kind": raw(lambda data: b"\x89PNG\r\n" + data),
    "zeros": raw(lambda data: bytes(len(data))),
}
# Odd, but nothing of it decides a number: taken or refused, in time.
EITHER: dict[str, Lie] = {
    "many groups": changed(many),
    "deep groups": changed(deep),
    "root with escapes": attribute("", "root", "/x\x1b[31m\n/y"),
    "created by anybody": attribute("", "created_by", "x" * 60_000),
    "environment without end": attribute("extractor", "environment", "[" * 60_000),
    "another map_shape": attribute(LAYER, "map_shape", np.array([10**9, 10**9, 10**9])),
    "an array more": changed(lambda f: f.create_dataset("x", data=np.zeros(9))),
}
