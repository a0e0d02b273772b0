"""The public surface is small, sorted and real."""

import importlib

import pytest


@pytest.mark.parametrize("package", ["featurize", "classify"])
def test_all_is_sorted_small_and_there(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert len(module.__all__) <= 24
    for name in module.__all__:
        assert getattr(module, name).__doc__


@pytest.mark.parametrize("package", ["featurize", "classify"])
def test_unknown_names_are_attribute_errors(package):
    with pytest.raises(AttributeError, match="nonsense"):
        importlib.import_module(package).nonsense  # noqa: B018
