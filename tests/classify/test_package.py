"""The package as a whole: its public names, what importing costs, its errors."""

import subprocess
import sys

import pytest

import classify
from classify import errors

HEAVY = "{'torch', 'sklearn', 'h5py', 'pandas', 'scipy'}"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_there():
    for name in classify.__all__:
        assert getattr(classify, name) is not None
        assert name in dir(classify)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = classify.nonsense


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert classify.__version__ == version("headgraft")


def test_importing_the_package_or_the_command_line_loads_nothing_heavy():
    assert python(f"import sys, classify; print({HEAVY} & set(sys.modules))") == "set()"
    assert python(f"import sys, classify.cli.app; print({HEAVY} & set(sys.modules))") == "set()"


@pytest.mark.long
def test_a_head_is_fitted_from_a_cache_without_torch(cache, table, tmp_path):
    code = f"""
import sys
import classify.experiments.compare, classify.experiments.fit
from classify import CachedFeatures, compare, fit, load_head, save_head
head, record = fit({str(cache.path)!r}, {str(table)!r}, layer="coarse")
save_head(head, {str(tmp_path / "h")!r})
load_head({str(tmp_path / "h")!r})
print('torch' in sys.modules, record.accuracy > 0.8, callable(compare))
"""
    # The last: no module of the package hides a function of the same name.
    assert python(code) == "False True True"


@pytest.mark.parametrize(
    "leaf",
    [e for e in vars(errors).values() if isinstance(e, type) and e.__module__ == errors.__name__],
)
def test_each_error_is_a_classify_error_and_a_builtin(leaf):
    assert issubclass(leaf, errors.ClassifyError)
    if leaf is not errors.ClassifyError:
        assert issubclass(leaf, (ValueError, KeyError, OSError, ArithmeticError))
    assert str(leaf("what 'happened'")) == "what 'happened'"
