"""The public surface is sorted, real and whole: see DESIGN.md, section 3."""

import dataclasses
import importlib
import inspect
import typing

import pytest

PACKAGES = ["featurize", "classify"]
RESULTS = {
    "fit": "HeadFit",
    "compare": "Comparison",
    "evaluate": "Evaluation",
    "predict": "Predictions",
    "advise": "Advice",
    "auto": "AutoResult",
}
MAX_POSITIONAL = {"fit": 4, "compare": 4}  # three for all others


def public_functions(package):
    module = importlib.import_module(package)
    named = ((name, getattr(module, name)) for name in module.__all__)
    return [(name, value) for name, value in named if inspect.isfunction(value)]


def flatten(annotation):
    """The classes that an annotation is made of."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, list):
        arguments = annotation
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from flatten(argument)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_there(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__


@pytest.mark.parametrize(("name", "function"), public_functions("classify"))
def test_types_of_signatures_are_at_the_front(name, function):
    fronts = [importlib.import_module(package) for package in PACKAGES]
    exported = {getattr(front, each) for front in fronts for each in front.__all__}
    for annotation in typing.get_type_hints(function).values():
        for kind in flatten(annotation):
            if getattr(kind, "__module__", "").partition(".")[0] in PACKAGES:
                assert kind in exported, kind


@pytest.mark.parametrize(
    ("name", "function"), [each for package in PACKAGES for each in public_functions(package)]
)
def test_few_parameters_are_positional(name, function):
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    positional = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert positional <= MAX_POSITIONAL.get(name, 3)


@pytest.mark.parametrize(("verb", "result"), RESULTS.items())
def test_a_verb_returns_one_frozen_result(verb, result):
    front = importlib.import_module("classify")
    kind = getattr(front, result)
    assert kind in flatten(typing.get_type_hints(getattr(front, verb))["return"])
    assert callable(kind.to_dict)
    if dataclasses.is_dataclass(kind):
        assert kind.__dataclass_params__.frozen
        fields = [field.name for field in dataclasses.fields(kind)]
    else:
        assert issubclass(kind, tuple)
        fields = kind._fields
    assert "notices" in fields or isinstance(kind.notices, property)


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_names_are_attribute_errors(package):
    with pytest.raises(AttributeError, match="nonsense"):
        importlib.import_module(package).nonsense  # noqa: B018
