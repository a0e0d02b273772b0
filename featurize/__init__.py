"""Stage 1 of Headgraft: images in, feature cache out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import FeaturizeError, HeadgraftError
from featurize.version import __version__ as __version__

if TYPE_CHECKING:
    from featurize.backbones.backbone import Backbone
    from featurize.backbones.load import load_backbone
    from featurize.backbones.profiling import layer_costs
    from featurize.cache.reader import FeatureCache
    from featurize.diagnosis.diagnose import Diagnosis, diagnose
    from featurize.extraction.dry_run import Estimate
    from featurize.extraction.export import export
    from featurize.extraction.joining.join import JoinSummary, join
    from featurize.extraction.run import run
    from featurize.extraction.summary import Summary
    from featurize.extraction.verify import verify
    from featurize.images.preprocess import Preprocess
    from featurize.layer_spec import LayerSpec
    from featurize.progress import Progress

__all__ = [
    "Backbone",
    "Diagnosis",
    "Estimate",
    "FeatureCache",
    "FeaturizeError",
    "HeadgraftError",
    "JoinSummary",
    "LayerSpec",
    "Preprocess",
    "Progress",
    "Summary",
    "diagnose",
    "export",
    "join",
    "layer_costs",
    "load_backbone",
    "run",
    "verify",
]

_HOMES = {
    "Backbone": "backbones.backbone",
    "Diagnosis": "diagnosis.diagnose",
    "Estimate": "extraction.dry_run",
    "FeatureCache": "cache.reader",
    "JoinSummary": "extraction.joining.join",
    "LayerSpec": "layer_spec",
    "Preprocess": "images.preprocess",
    "Progress": "progress",
    "Summary": "extraction.summary",
    "diagnose": "diagnosis.diagnose",
    "export": "extraction.export",
    "join": "extraction.joining.join",
    "layer_costs": "backbones.profiling",
    "load_backbone": "backbones.load",
    "run": "extraction.run",
    "verify": "extraction.verify",
}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used: importing torch takes seconds, and most uses
    # of a cache do not need it.
    if name not in _HOMES:
        raise AttributeError(f"module 'featurize' has no attribute {name!r}")
    value = getattr(import_module(f"featurize.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
