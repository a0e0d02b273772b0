"""Whether a GPU does what is promised: the acceptance of a machine, step by step.

    python benchmarks/gpu.py {machine,correctness,adversity,throughput,training,all}
        [--device cuda|cpu] [--out FOLDER]

Each step is a process under a limit of time, of 2 to 8 minutes with 16 cores. What it finds is
written at once, as JSON lines, to FOLDER/STEP.jsonl; a table of PASS and FAIL comes last, and the
exit code is 1 if anything failed. Nothing of the GPU's settings is changed. With `--device cpu` the
processor stands in, with small sizes: that shows that the script works, and what only a GPU can
show is n/a.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from table import show

LIMITS = {  # seconds
    "machine": 120, "correctness": 480, "adversity": 300, "throughput": 480, "training": 360,
}  # fmt: skip
HERE = Path(__file__).parent


def run_step(step: str, device: str, out: Path) -> list[dict[str, object]]:
    """Run a step in a process of its own; what it found, and how it ended."""
    lines = out / f"{step}.jsonl"
    lines.unlink(missing_ok=True)
    code = f"import gpu_runs; gpu_runs.main({step!r}, {device!r}, {str(lines)!r})"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdout=sys.stderr, start_new_session=True
    )
    try:
        ended = f"exit code {process.wait(LIMITS[step])}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
        process.wait()
        ended = f"no end within {LIMITS[step]} s"
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    verdict = "PASS" if ended == "exit code 0" else "FAIL"
    seconds = round(time.monotonic() - started)
    return [*found, {"check": f"the step {step} ends", "found": ended, "limit": "exit code 0",
                     "verdict": verdict, "seconds": seconds}]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("step", choices=[*LIMITS, "all"])
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--out", type=Path, default=HERE.parent / "build" / "gpu")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    n_failed = 0
    for step in LIMITS if given.step == "all" else [given.step]:
        rows = run_step(step, given.device, given.out)
        show(f"{step} on {given.device}", rows)
        n_failed += sum(row["verdict"] == "FAIL" for row in rows)
    print(f"\n{n_failed} checks failed" if n_failed else "\nnothing failed")
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
