"""A million rows: is ridge linear in time and bounded in memory, and what do workers hold?

Ridge on 125,000 to 1,000,000 x 512 drawn features, each in a process of its own: seconds, and
memory beside the mapped features. Then a comparison of five heads on the largest, with the
proportional memory of its workers. The limits: time in proportion to rows; the features once, and
300 MB a worker.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from features import BUILD, drawn_cache
from machine import describe

DIM = 512
SIZES = (125_000, 250_000, 500_000, 1_000_000)


def ridge(path: str) -> None:
    from classify import fit

    start = time.perf_counter()
    _, record = fit(path, head="ridge")
    own = Path("/proc/self/status").read_text()
    anonymous = next(line for line in own.splitlines() if line.startswith("RssAnon"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "accuracy": record.accuracy,
                      "anonymous": int(anonymous.split()[1]) / 1024, "peak": peak}))  # fmt: skip


def proportional(pid: int) -> float:
    """What a process holds, shared pages divided among those that share them: MB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def workers(path: Path) -> None:
    from classify import compare

    shutil.rmtree(f"{path}.kept", ignore_errors=True)  # what is kept would not be trained again
    held, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            held[0] = max(held[0], sum(map(proportional, descendants(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    found = compare(path, heads="softmax,linear-svm,ridge,lda,ncm", jobs=2)
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    features = 1_000_000 * DIM * 4 / 2**20
    for record in found.records:
        print(f"{record.head:12} validation {record.validation:.4f} test {record.accuracy:.4f} "
              f"{record.seconds:7.1f} s")  # fmt: skip
    print(f"five heads, two workers: {seconds:.0f} s; proportional memory of the workers "
          f"{held[0]:,.0f} MB; the features {features:,.0f} MB and 300 MB each are "
          f"{features + 600:,.0f} MB")  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        ridge(sys.argv[1])
        return
    print(describe())
    print(f"{'rows':>10} {'seconds':>8} {'a million':>10} {'features':>9} {'own memory':>11}")
    for rows in SIZES:
        path = BUILD / f"drawn-{rows}.h5"
        drawn_cache(path, rows, DIM)
        line = [sys.executable, __file__, str(path)]
        told = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        print(f"{rows:10,} {told['seconds']:8.1f} {told['seconds'] / rows * 1e6:10.1f} "
              f"{rows * DIM * 4 / 2**20:6,.0f} MB {told['anonymous']:8,.0f} MB")  # fmt: skip
    workers(path)


if __name__ == "__main__":
    main()
