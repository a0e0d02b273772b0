"""Precision is set for a run and put back after it, by whichever interface the user has set it."""

import subprocess
import sys

# In a process of its own, and a child of it for each setting: torch keeps them to its end.
CODE = """
import os, sys
import torch
from featurize.engines.torch_settings import precision_context

backends = torch.backends
SETTINGS = {
    "none": lambda: None,
    "all tf32": lambda: setattr(backends, "fp32_precision", "tf32"),
    "matmul tf32": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn tf32": lambda: setattr(backends.cudnn, "fp32_precision", "tf32"),
    "conv ieee": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    "rnn ieee": lambda: setattr(backends.cudnn.rnn, "fp32_precision", "ieee"),
    "older matmul": lambda: torch.set_float32_matmul_precision("high"),
    "older cudnn": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "processor bf16": lambda: (
        setattr(backends.mkldnn.conv, "fp32_precision", "bf16"),
        setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    ),
}
OLDER = {
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
    "cuda.matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
}

def look():
    parts = {
        "all": backends, "matmul": backends.cuda.matmul, "cudnn": backends.cudnn,
        "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn, "mkldnn": backends.mkldnn,
        "mkldnn.matmul": backends.mkldnn.matmul, "mkldnn.conv": backends.mkldnn.conv,
        "mkldnn.rnn": backends.mkldnn.rnn,
    }
    seen = {name: part.fp32_precision for name, part in parts.items()}
    for name, ask in OLDER.items():
        try:
            seen[name] = ask()
        except RuntimeError:
            seen[name] = "refuses to say"
    return seen

def check(precision):
    before = look()
    with precision_context("cpu", precision):
        inside = look()
        tf32 = "tf32" if precision == "tf32" else "ieee"
        expected = {
            "matmul": tf32, "conv": tf32, "rnn": tf32,
            "mkldnn.conv": "ieee", "mkldnn.rnn": "ieee",
            "float32_matmul_precision": "high" if precision == "tf32" else "highest",
            "cudnn.allow_tf32": precision == "tf32",
            "cuda.matmul.allow_tf32": precision == "tf32",
        }
        wrong = {name: inside[name] for name in expected if inside[name] != expected[name]}
        assert not wrong, wrong
        # With TF32 asked for, the older interface also lets the processor use it.
        assert inside["mkldnn.matmul"] in ("ieee", tf32), inside
        is_reduced = torch.is_autocast_enabled("cpu")
        assert is_reduced == (precision in ("bf16", "fp16"))
    after = look()
    assert after == before, {k: (before[k], after[k]) for k in before if before[k] != after[k]}

failed = 0
for name, use in SETTINGS.items():
    child = os.fork()
    if not child:
        try:
            use()
            for precision in ("float32", "tf32", "bf16", "fp16"):
                check(precision)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    failed += bool(os.waitpid(child, 0)[1])
sys.exit(failed)
"""


def test_any_setting_of_the_users_is_put_back():
    """Nine settings by four precisions; the older interface raises after five of the nine."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
