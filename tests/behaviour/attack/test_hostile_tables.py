"""Label tables with every oddity: read right, or refused in one short message; nothing else."""

import pytest

from .starting import Starter

PATHS = [f"{name}/{k:03}.png" for name in "abc" for k in range(20)]


def rows(lines: list[str] | None = None) -> str:
    return "\n".join(lines or [f"{path},{path[0]}" for path in PATHS]) + "\n"


def table(header: str = "path,label", extra: str = "", body: str | None = None) -> bytes:
    return f"{header}\n{rows() if body is None else body}{extra}".encode()


def columns(name: str, values: list[str]) -> bytes:
    lines = [f"{p},{p[0]},{values[k % len(values)]}" for k, p in enumerate(PATHS)]
    return table(f"path,label,{name}", body=rows(lines))


def torn() -> bytes:
    """Every group lies on both sides of the split that is given."""
    lines = [f"{p},{p[0]},{'test' if k % 2 else 'train'},g{k // 4}" for k, p in enumerate(PATHS)]
    return table("path,label,split,group", body=rows(lines))


def some(change) -> bytes:
    return table(body=rows([change(k, p) for k, p in enumerate(PATHS)]))


NFC, NFD = "\u00e9", "e\u0301"

TAKEN: dict[str, bytes] = {
    "plain": table(),
    "byte order mark": b"\xef\xbb\xbf" + table(),
    "windows line ends": table().replace(b"\n", b"\r\n"),
    "no last line end": table().rstrip(b"\n"),
    "quoted": table(body=rows([f'"{p}","{p[0]}"' for p in PATHS])),
    "another order": table("label,path", body=rows([f"{p[0]},{p}" for p in PATHS])),
    "columns more": columns("note", ["x", "", "=1+1"]),
    "labels of formulas": some(lambda k, p: f"{p},=cmd|' /C calc'!{p[0]}"),
    "labels of commas": some(lambda k, p: f'{p},"{p[0]},x"'),
    "labels of numbers": some(lambda k, p: f"{p},0{ord(p[0])}"),
    "labels of escapes": some(lambda k, p: f"{p},{p[0]}\x1b[31m"),
    "labels of markup": some(lambda k, p: f"{p},<script>{p[0]}</script>"),
    "split": columns("split", ["train", "train", "train", "test"]),
    "group": columns("group", ["g1", "g2", "g3", "g4", "g5", "g6", "g7"]),
    "a few rows only": table(body=rows([f"{p},{p[0]}" for p in PATHS[::2]])),
}
REFUSED: dict[str, bytes] = {
    "empty": b"",
    "line ends only": b"\n\n\n",
    "header only": b"path,label\n",
    "no header": rows().encode(),
    "no path": table("file,label"),
    "no label": table("path,kind"),
    "path twice in the header": table("path,path"),
    "a path twice": table(extra="a/000.png,b\n"),
    "a path twice, the same": table(extra="a/000.png,a\n"),
    "not in the cache": table(extra="z/000.png,a\n"),
    "empty path": table(extra=",a\n"),
    "too many cells": table(extra="a/000.png,a,b,c\n"),
    "too few cells": table(body=rows(PATHS)),
    "quote without end": table(extra='"a/000.png,a\n'),
    "NUL": table(extra="a/000\0.png,a\n"),
    "latin1": table(extra="x").decode().replace("a/", "\u00e9/").encode("latin1"),
    "UTF-16": table().decode().encode("utf-16"),
    "UTF-32": table().decode().encode("utf-32"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "split of nothing": columns("split", ["train", "nothing"]),
    "split of test alone": columns("split", ["test"]),
    "one class": some(lambda k, p: f"{p},same"),
    "torn groups": torn(),
    "semicolons": table().replace(b",", b";"),
    "tabs": table().replace(b",", b"\t"),
    "a million columns": table("path,lable" + ",x" * 1_000_000),
    "a long cell": table(extra=f"{'x' * 200_000},a\n"),
    "a long header": table("x" * 1_000_000),
    "JSON": b'{"path": "a/000.png", "label": "a"}',
    "absolute path": table(extra="/etc/passwd,a\n"),
    "path out": table(extra="../x.png,a\n"),
}
# Hardly meant so: refused, or said.
SAID: dict[str, bytes] = {
    "one group": columns("group", ["g"]),
    "a class an image": some(lambda k, p: f"{p},c{k}"),
    "NFC and NFD": some(lambda k, p: f"{p},{(NFC, NFD)[k % 2] if p[0] == 'a' else p[0]}"),
    "zero-width space": some(lambda k, p: f"{p},{p[0]}{chr(0x200B) * (k % 2)}"),
}
QUICK = ("torn groups", "UTF-16", "a million columns", "NFC and NFD", "NUL", "quoted", "split")


def attack(start: Starter, taught, name: str, home) -> None:
    path, head = home / "t.csv", home / "h"
    path.write_bytes((TAKEN | REFUSED | SAID)[name])
    words = ("fit", taught / "c.h5", "-o", head, "--labels", path, "--head", "ncm")
    done = start("classify", *words, hang=60)
    assert done.code in (0, 2), done.said
    for word in ("Traceback", "error: unexpected"):
        assert word not in done.err, done.said
    assert len(done.err) < 4000, f"a message of {len(done.err):,} bytes"
    assert head.exists() == (done.code == 0)
    if name in TAKEN:
        assert done.code == 0, done.said
    elif name in REFUSED:
        assert done.code == 2, done.said
    else:
        assert done.code == 2 or "note" in done.err, f"says nothing of it: {done.said}"
    if name == "UTF-16":
        assert "latin1" not in done.err, done.said


@pytest.mark.parametrize("name", QUICK)
def test_a_table(start: Starter, taught, name, tmp_path):
    attack(start, taught, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TAKEN, *REFUSED, *SAID])
def test_every_table(start: Starter, taught, name, tmp_path):
    attack(start, taught, name, tmp_path)
