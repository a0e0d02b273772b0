"""Stage 1 of Headgraft: images in, feature cache out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import FeaturizeError

if TYPE_CHECKING:
    from featurize.backbones import Backbone, load_backbone
    from featurize.cache import FeatureCache
    from featurize.checking import verify
    from featurize.costs import layer_costs
    from featurize.estimate import Estimate
    from featurize.exporting import export
    from featurize.job import run
    from featurize.summary import Summary

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Estimate",
    "FeatureCache",
    "FeaturizeError",
    "Summary",
    "export",
    "layer_costs",
    "load_backbone",
    "run",
    "verify",
]

_HOMES = {
    "Backbone": "backbones",
    "Estimate": "estimate",
    "FeatureCache": "cache",
    "Summary": "summary",
    "export": "exporting",
    "layer_costs": "costs",
    "load_backbone": "backbones",
    "run": "job",
    "verify": "checking",
}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used: torch takes seconds, and most uses of a
    # cache do without it.
    if name not in _HOMES:
        raise AttributeError(f"module 'featurize' has no attribute {name!r}")
    value = getattr(import_module(f"featurize.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
