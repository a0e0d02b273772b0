"""From one part to a thousand: time a part, memory and open files.

Tiny rows, so that what is measured is the parts. A run makes them by `featurize run -o D/`, and
runs again with nothing to do; a reader opens all, `classify fit` learns from all, `featurize join`
makes one file of them. Each command in a process of its own. The limits: time in proportion to
parts, flat memory but for the keys, a bounded number of open files.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from growth import tiny_images
from machine import describe
from photos import BUILD
from table import Row, show

from featurize.cache.builder import allocate_cache
from featurize.cache.format import Extractor, LayerInfo
from featurize.cache.parts.index import PartRange, PartsIndex, write_index
from featurize.cache.writer import CacheWriter
from featurize.fingerprint import compute_fingerprint
from featurize.images.preprocess import Preprocess

COUNTS = (1, 10, 100, 1000)
RUN_ROWS, READ_ROWS, DIM = 20, 100, 64
RECIPE = {"resize": 8, "crop": 8, "interpolation": "bilinear", "decode": "exact"}
RECIPE |= {"mean": [0.5] * 3, "std": [0.25] * 3}
POLL_SECONDS = 0.005
READER = """
import sys
import numpy as np
from featurize import FeatureCache
cache = FeatureCache(sys.argv[1])
rows = np.arange(cache.n_rows)
assert (cache.status == 1).all() and len(cache.paths) == len(rows)
for start in range(0, len(rows), 1000):
    assert cache.features(rows=rows[start : start + 1000]).any()
"""


def measure(line: list[str]) -> tuple[Row, str]:
    """Run a command; its seconds, peak memory and most open files, and what it printed."""
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        home, peak, files = Path("/proc", str(process.pid)), 0, 0
        start = time.perf_counter()
        while process.poll() is None:
            try:
                status = (home / "status").read_text()
                files = max(files, len(os.listdir(home / "fd")))
            except OSError:
                break  # it has ended
            if "VmHWM" in status:  # not of a process that has ended and was not waited for
                peak = max(peak, int(status.partition("VmHWM:")[2].split()[0]))
            time.sleep(POLL_SECONDS)
        out, _ = process.communicate()
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}")
    return {"seconds": seconds, "peak MB": peak / 1024, "open files": files}, out


def command(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def make_parts(count: int) -> Path:
    """A cache of `count` parts, two classes by folder, without a network."""
    home = BUILD / f"parts-{count}"
    if (home / ".whole").exists():
        return home
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    extractor = Extractor("tiny", "V1", "5" * 64, Preprocess.from_dict(RECIPE), "float32", {})
    decides = {name: getattr(extractor, name) for name in ("backbone", "weights_sha256")}
    decides |= {"preprocess": extractor.preprocess, "precision": "float32"}
    fingerprint = compute_fingerprint(**decides, layer="0", pool="avg", dtype="<f4")
    info = LayerInfo("0", "avg", DIM, "<f4", (DIM, 2, 2), fingerprint)
    keys = [f"{'ab'[2 * k // (count * READ_ROWS)]}/{k:07}.ppm" for k in range(count * READ_ROWS)]
    rng, ranges = np.random.default_rng(0), []
    for part in range(count):
        rows = np.arange(part * READ_ROWS, (part + 1) * READ_ROWS)
        path = home / f"part-{part:05d}.h5"
        ranges.append(PartRange(path.name, keys[rows[0]] if part else ""))
        own = [keys[row] for row in rows]
        allocate_cache(path, extractor, [info], own, rows + 100, rows + 10**18, root="/tiny")
        digests = np.zeros((READ_ROWS, 32), np.uint8)
        digests[:, :8] = (rows[:, None] + 1).astype("<i8").view(np.uint8)
        features = rng.normal(size=(READ_ROWS, DIM)).astype("f4")
        features += np.array([[key < "b"] for key in own], "f4")
        with CacheWriter(path) as into:
            into.fill(np.arange(READ_ROWS), {"0": features}, digests, rows + 100, rows + 10**18)
    write_index(home, PartsIndex(tuple(ranges), READ_ROWS, {"0": fingerprint}))
    (home / ".whole").touch()
    return home


def measure_run(count: int) -> Row:
    """Make `count` parts of tiny pictures, and run again."""
    images, output = tiny_images(count * RUN_ROWS), BUILD / f"run-{count}"
    shutil.rmtree(output, ignore_errors=True)
    line = command("featurize", "run", images, "-o", f"{output}/", "--json")
    first = [*line, "--backbone", "seedling", "--layers", "stem:max", "--part-rows", str(RUN_ROWS)]
    done, out = measure(first)
    again, out_again = measure(line)
    n_parts = len(list(output.glob("part-*.h5")))
    found = json.loads(out)["computed"], json.loads(out_again)["computed"]
    if found != (count * RUN_ROWS, 0):
        raise SystemExit(f"not every row was computed once: {found}")
    shutil.rmtree(output)
    row: Row = {"parts": n_parts, "rows": count * RUN_ROWS, "run s": done["seconds"]}
    row |= {"ms a part": 1000 * done["seconds"] / n_parts}
    row |= {"peak MB": done["peak MB"], "open files": done["open files"]}
    row |= {"again s": again["seconds"], "again ms a part": 1000 * again["seconds"] / n_parts}
    return row | {"again peak MB": again["peak MB"], "again open files": again["open files"]}


def measure_readers(count: int, kinds: tuple[str, ...]) -> Row:
    """A reader, `classify fit` and `featurize join` on the same parts."""
    parts = make_parts(count)
    joined, head = BUILD / "joined.h5", BUILD / "head.safetensors"
    lines = {
        "read": [sys.executable, "-c", READER, f"{parts}/"],
        "fit": command("classify", "fit", f"{parts}/", "--head", "lda", "-o", head, "--json"),
        "join": command("featurize", "join", f"{parts}/", "-o", joined, "--json"),
    }
    row: Row = {"parts": count, "rows": count * READ_ROWS}
    for kind in kinds:
        joined.unlink(missing_ok=True)
        head.unlink(missing_ok=True)
        done, _ = measure(lines[kind])
        row |= {f"{kind} s": done["seconds"], f"{kind} peak MB": done["peak MB"]}
        row |= {f"{kind} open files": done["open files"]}
    for left in BUILD.glob("joined.h5*"):
        left.unlink()
    shutil.rmtree(f"{parts}.kept", ignore_errors=True)  # or the next fit would recall this one
    return row


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--most", type=int, default=COUNTS[-1], help="parts")
    options.add_argument("--only", help="run, read, fit or join; several with commas")
    given = options.parse_args()
    wanted = (given.only or "run,read,fit,join").split(",")
    counts = [count for count in COUNTS if count <= given.most]
    print(describe())
    limit = "The limits: seconds in proportion to parts, flat memory, few open files."
    if "run" in wanted:
        rows = [measure_run(count) for count in counts]
        show(f"Runs on parts of {RUN_ROWS} rows", rows, limit)
    kinds = tuple(kind for kind in ("read", "fit", "join") if kind in wanted)
    if kinds:
        rows = [measure_readers(count, kinds) for count in counts]
        show(f"Readers of parts of {READ_ROWS} rows", rows, limit)


if __name__ == "__main__":
    main()
