"""The numeric tests under every kernel of OpenBLAS that this processor can run.

OpenBLAS chooses its kernels by the processor it finds, and each rounds in its own way: what holds
on other machines is shown here by telling it that it is on those.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("exactness", "hard_numbers", "estimators", "calibration", "choice")

# What OpenBLAS calls a kernel, what it then says it uses, and what the processor needs for it.
X86 = {
    "Prescott": ({"Prescott", "Katmai"}, {"pni"}),
    "Nehalem": ({"Nehalem"}, {"sse4_2"}),
    "Sandybridge": ({"Sandybridge"}, {"avx"}),
    "Haswell": ({"Haswell"}, {"avx2", "fma"}),
    "Zen": ({"Zen"}, {"avx2", "fma"}),
    "SkylakeX": ({"SkylakeX"}, {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "Cooperlake": ({"Cooperlake"}, {"avx512f", "avx512bw", "avx512_bf16"}),
    "SapphireRapids": ({"SapphireRapids"}, {"amx_tile", "avx512_bf16"}),
}
ARM = {
    "ARMV8": ({"armv8"}, {"asimd"}),
    "NEOVERSEN1": ({"neoversen1"}, {"asimd"}),
    "NEOVERSEV1": ({"neoversev1"}, {"sve"}),
    "NEOVERSEN2": ({"neoversen2"}, {"sve2"}),
}
KERNELS = ARM if platform.machine() in ("aarch64", "arm64") else X86

IN_USE = """
import json, sys
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
import pytest
code = pytest.main(sys.argv[1:]) if sys.argv[1:] else 0
blas = [one for one in threadpool_info() if one["internal_api"] == "openblas"]
in_use = [(one["architecture"], one["num_threads"]) for one in blas]
print("IN USE", json.dumps([int(code), in_use]))
"""


def run(kernel: str, threads: int, *arguments: object, **more: str):
    """Run tests in a process of its own: pytest's code, what OpenBLAS uses, and all it printed."""
    variables = {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": str(threads), **more}
    done = subprocess.run(
        [sys.executable, "-c", IN_USE, *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | variables,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("IN USE ")]
    assert told, (
        f"{kernel}: ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    code, in_use = json.loads(told[0].removeprefix("IN USE "))
    return code, in_use, done.stdout


def flags() -> set[str]:
    """What this processor can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }


def check_runs(kernel: str, threads: int) -> None:
    """Say why where this processor, or this OpenBLAS, has no such kernel."""
    names, needed = KERNELS[kernel]
    if missing := needed - flags():
        pytest.skip(f"this processor cannot run {kernel}: it has no {', '.join(sorted(missing))}")
    _, in_use, _ = run(kernel, threads)
    if not in_use:
        pytest.skip("numpy and scipy have another BLAS here than OpenBLAS")
    if not all(name in names for name, _ in in_use):
        pytest.skip(f"OpenBLAS was built without {kernel} here, and takes {in_use[0][0]} for it")
    assert all(count == threads for _, count in in_use)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what a core can"),
]
SMALL = {"OPENBLAS_L2_SIZE": "512"}  # kilobytes: other blocks, so other sums


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_hold_under_every_kernel_of_openblas(kernel, threads):
    check_runs(kernel, threads)
    files = [HERE / f"test_{name}.py" for name in FILES]
    options = ("-q", "-m", "not slow", "-p", "no:cacheprovider")
    code, in_use, told = run(kernel, threads, *options, *files, **SMALL)
    assert code == 0, told[-6000:]
    assert in_use
    assert all(name in KERNELS[kernel][0] for name, _ in in_use)


@pytest.fixture(scope="module")
def digits_cache(command, tmp_path_factory):
    """What `make demo` makes: 1,797 digits through the shipped backbone, and their labels."""
    home = tmp_path_factory.mktemp("demo")
    recipe = HERE.parents[1] / "data" / "digits" / "make.py"
    subprocess.run([sys.executable, recipe, home / "digits"], check=True, capture_output=True)
    options = ("-o", home / "c.h5", "--backbone", "seedling", "--layers", "stage1,stage2")
    assert command("featurize", "run", home / "digits" / "images", *options).returncode == 0
    return home / "c.h5", home / "digits" / "digit.csv"


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_fit_of_the_demo_converges(command, digits_cache, tmp_path, kernel):
    check_runs(kernel, 1)
    cache, table = digits_cache
    shutil.copy(cache, tmp_path / "c.h5")
    done = command(
        "classify", "compare", tmp_path / "c.h5", "--labels", table,
        "--heads", "softmax,linear-svm,rbf-svm",
        env=os.environ | SMALL | {"OPENBLAS_CORETYPE": kernel}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "converge" not in done.stdout + done.stderr
