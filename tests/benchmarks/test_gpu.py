"""The acceptance of a GPU runs on a processor too, where what only a GPU can show is n/a."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def go_through(step: str, out: Path) -> tuple[str, list[dict[str, object]]]:
    line = [sys.executable, "gpu.py", step, "--device", "cpu", "--out", str(out)]
    done = subprocess.run(line, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = (out / f"{step}.jsonl").read_text().splitlines()
    return done.stdout, [json.loads(line) for line in lines]


@pytest.mark.long
def test_a_step_tells_what_it_finds(tmp_path):
    table, found = go_through("machine", tmp_path)
    assert "nothing failed" in table
    assert "| the step machine ends | exit code 0 | exit code 0 | PASS |" in table
    verdicts = {row["check"]: row["verdict"] for row in found}
    assert verdicts["Python's headers are there"] == "n/a"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["correctness", "adversity", "throughput", "training"])
def test_every_step_runs_on_a_stand_in(step, tmp_path):
    _, found = go_through(step, tmp_path)
    assert found
    assert "FAIL" not in {row["verdict"] for row in found}


def test_a_step_that_breaks_is_a_failure(tmp_path):
    line = [sys.executable, "gpu.py", "nonsense", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
