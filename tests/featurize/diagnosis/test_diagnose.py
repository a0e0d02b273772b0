"""`featurize doctor`: what works, what is missing, what is broken, and what it ends with."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from featurize.diagnosis.packages import EXTRAS, REQUIRED

ROOT = Path(__file__).parents[3]
HEAVY = ("open_clip", "peft", "onnx", "onnxruntime", "onnxscript", "pyarrow", "bokeh", "skops")

# As if it were not installed: what Python runs at every start.
HIDE_PEFT = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, *_):
        if name == "peft":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden)
"""


@pytest.fixture
def stubs(tmp_path):
    """An environment in which some packages are others: ``stubs(timm="raise ImportError()")``.

    Those that take long to import are empty.
    """

    def make(**code: str) -> dict[str, str]:
        for name, text in {**dict.fromkeys(HEAVY, ""), **code}.items():
            (tmp_path / "stubs" / name).mkdir(parents=True)
            (tmp_path / "stubs" / name / "__init__.py").write_text(text)
        return os.environ | {"PYTHONPATH": str(tmp_path / "stubs"), "OMP_NUM_THREADS": "1"}

    return make


def test_every_package_of_pyproject_is_known():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        words = (requirement.split(">=")[0].split("[")[0] for requirement in requirements)
        return {word for word in words if word != "headgraft"}

    assert names(project["dependencies"]) == {*REQUIRED}
    extras = {
        name: names(requirements)
        for name, requirements in project["optional-dependencies"].items()
        if name not in ("dev", "docs")
    }
    own = {name: {*packages} for name, (_, packages) in EXTRAS.items()}
    own["lite"].discard("timm")  # pyproject.toml has it by headgraft[timm]
    assert own == extras


@pytest.mark.long
def test_a_broken_extra_is_named_and_the_rest_works(command, stubs):
    """In a folder that nobody can write to."""
    broken = "raise ImportError('libfoo.so.1: no such file')"
    environment = stubs(timm=broken, sklearn="") | {
        "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://me:pw@x",
    }
    done = command("featurize", "doctor", "--json", env=environment, cwd="/proc")
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["ok"], found["works"]) == (False, True)
    (problem,) = found["problems"]
    assert problem.startswith("extra timm: timm cannot be imported: ImportError: libfoo.so.1")
    assert "pip install --force-reinstall timm" in problem
    status = {extra["name"]: extra["status"] for extra in found["extras"]}
    assert {name for name in status if status[name] == "broken"} == {"timm", "lite"}
    assert [step["ok"] for step in found["self_test"]["steps"]] == [True] * 5
    assert found["self_test"]["images"] == 32
    assert found["self_test"]["difference"] < 1e-4
    assert found["self_test"]["run_per_second"] > 0
    assert {"torch", "torchvision", "timm", "onnxruntime", "scikit-learn", "h5py", "pillow"} < set(
        found["versions"]
    )
    folder = found["machine"]["folders"][0]
    assert (folder["path"], folder["writable"]) == ("/proc", False)
    assert any("/proc cannot be written; give -o" in notice for notice in found["notices"])
    assert any("HF_HUB_OFFLINE is set" in notice for notice in found["notices"])
    assert found["machine"]["settings"]["OMP_NUM_THREADS"] == "1"
    assert "pw" not in done.stdout


@pytest.mark.long
def test_torch_that_ends_the_process_is_a_finding(command, stubs, tmp_path):
    """So is one that cannot be imported, or an extra that is not there."""
    environment = stubs(
        torch="import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        torchvision="raise OSError('undefined symbol')",
        timm="",
        sklearn="",
        onnxscript="print('noise on stdout')",
    )
    (tmp_path / "stubs" / "sitecustomize.py").write_text(HIDE_PEFT)
    done = command("featurize", "doctor", env=environment)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "problem: torch cannot be imported: it crashed: SIGSEGV; " in done.stdout
    assert "problem: torchvision cannot be imported: OSError: undefined symbol; " in done.stdout
    assert "problem: self-test: import torch: it crashed: SIGSEGV; install torch" in done.stdout
    assert lines[-1] == "3 problems; Headgraft does not work here"
    assert any(line.startswith("memory ") for line in lines)
    assert "  missing  lora: classify finetune --lora; pip install 'headgraft[lora]'" in lines
    assert len(lines) <= 24
    assert "noise" not in done.stdout


@pytest.mark.slow
def test_numbers_that_differ_are_a_problem(command, stubs, tmp_path):
    """A torch that computes otherwise, by a hook that every Python starts with."""
    environment = stubs(timm="", sklearn="")
    (tmp_path / "stubs" / "sitecustomize.py").write_text(
        "from importlib import import_module\n"
        "import sys\n"
        "if '-c' in sys.orig_argv and 'featurize.diagnosis.self_test' in sys.orig_argv:\n"
        "    import torch\n"
        "    relu = torch.relu\n"
        "    torch.nn.ReLU.forward = lambda self, x: relu(x) * 1.01\n"
        "    torch.nn.functional.relu = lambda x, inplace=False: relu(x) * 1.01\n"
    )
    done = command("featurize", "doctor", env=environment)
    assert done.returncode == 1, done.stdout
    assert "problem: self-test: compare numbers: RuntimeError: embeddings are " in done.stdout


@pytest.mark.long
def test_a_folder_for_temporary_files_is_needed(command, stubs, tmp_path):
    environment = stubs(timm="", sklearn="", torch="", torchvision="", sitecustomize="")
    (tmp_path / "stubs" / "sitecustomize" / "__init__.py").write_text(
        "import tempfile\n"
        "def refuse(): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile.gettempdir = tempfile._gettempdir = refuse\n"
    )
    done = command("featurize", "doctor", env=environment)
    assert done.returncode == 1, done.stderr
    assert "No usable temporary directory found" in done.stdout
    assert "set TMPDIR to a folder that can be written" in done.stdout
