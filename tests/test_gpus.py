"""The suite runs on no GPU by accident, and the packages touch one only where they say so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import GPU_VARIABLES, asks_for_gpus

ROOT = Path(__file__).parents[1]
# Where `torch.cuda` may be named, and why.
ALLOWED = {
    "featurize/engines/gpu/staging.py": "streams, events, pinned memory",
    "featurize/engines/torch_settings.py": "which devices there are, and what they can do",
    "featurize/engines/factory.py": "the GPU of one of several processes",
    "featurize/diagnosis/self_test.py": "what `featurize doctor` looks at",
    "featurize/extraction/cluster/session.py": "how many actors a machine takes",
    "classify/finetuning/distributed.py": "which GPU a process trains on; generators to restore",
}


@pytest.mark.parametrize(
    ("expression", "asks"),
    [("", False), ("not slow and not gpu", False), ("gpu", True), ("gpu and not slow", True)],
)
def test_gpus_are_used_if_they_are_asked_for(expression, asks):
    assert asks_for_gpus(expression) == asks


def test_they_are_hidden_from_what_tests_start(request):
    if asks_for_gpus(request.config.getoption("markexpr")):
        pytest.skip("GPUs were asked for by -m gpu")
    code = f"import os; print([os.environ.get(name) for name in {GPU_VARIABLES!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([""] * len(GPU_VARIABLES))


def find_uses(path: Path) -> bool:
    """Whether a module names `torch.cuda`."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "cuda"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_few_modules_touch_a_gpu():
    """What forks, or is imported without need, must not: a process that used one cannot fork."""
    modules = [*ROOT.glob("featurize/**/*.py"), *ROOT.glob("classify/**/*.py")]
    found = {str(path.relative_to(ROOT)) for path in modules if find_uses(path)}
    assert found == set(ALLOWED)


@pytest.mark.long
def test_a_run_on_the_processor_leaves_gpus_alone(tmp_path):
    code = """
import sys
import numpy as np
from pathlib import Path
from PIL import Image
import classify, featurize, torch
assert not torch.cuda.is_initialized()
home = Path(sys.argv[1])
rng = np.random.default_rng(0)
for number in range(12):
    path = home / "images" / "ab"[number % 2] / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
featurize.run(home / "images", home / "c.h5", backbone="seedling", device="cpu")
classify.fit(home / "c.h5", head="ncm")
classify.finetune(home / "images", home / "M", backbone="seedling", device="cpu", epochs=1,
                  tune="stage4", batch_size=4)
assert not torch.cuda.is_initialized()
"""
    environment = {k: v for k, v in os.environ.items() if k not in GPU_VARIABLES}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment, timeout=180)
