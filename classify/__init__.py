"""Stage 2: a feature cache and labels in, heads out. Only fine-tuning needs torch.

from classify import compare, fit, save_head

head, record = fit("photos.h5", "species.csv", layer="layer4")
save_head(head, "species.head")
print(compare("photos.h5", "species.csv").best)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from classify.data.preparation import RootL2
    from classify.errors import ClassifyError
    from classify.experiments.compare import compare
    from classify.experiments.fit import fit
    from classify.finetuning.estimator import FineTuneClassifier
    from classify.finetuning.run import FineTuneResult, finetune
    from classify.heads.fitted import FittedHead
    from classify.heads.inference import evaluate, predict
    from classify.heads.io import load_head, save_head
    from classify.report.write import write_report
    from classify.strategy.advise import advise
    from classify.strategy.auto import auto
    from classify.training.cached_features import CachedFeatures
    from classify.training.estimators import HeadClassifier
    from classify.training.linear_heads import (
        LinearSVMClassifier,
        NearestMeanClassifier,
        RidgeHeadClassifier,
        ShrunkLDAClassifier,
        SoftmaxClassifier,
    )

    __version__: str

__all__ = [
    "CachedFeatures",
    "ClassifyError",
    "FineTuneClassifier",
    "FineTuneResult",
    "FittedHead",
    "HeadClassifier",
    "LinearSVMClassifier",
    "NearestMeanClassifier",
    "RidgeHeadClassifier",
    "RootL2",
    "ShrunkLDAClassifier",
    "SoftmaxClassifier",
    "advise",
    "auto",
    "compare",
    "evaluate",
    "finetune",
    "fit",
    "load_head",
    "predict",
    "save_head",
    "write_report",
]

# Imported when first used: `import classify` and `classify --help` stay quick.
_HOMES = {
    "CachedFeatures": "training.cached_features",
    "ClassifyError": "errors",
    "FineTuneClassifier": "finetuning.estimator",
    "FineTuneResult": "finetuning.run",
    "FittedHead": "heads.fitted",
    "HeadClassifier": "training.estimators",
    "LinearSVMClassifier": "training.linear_heads",
    "NearestMeanClassifier": "training.linear_heads",
    "RidgeHeadClassifier": "training.linear_heads",
    "RootL2": "data.preparation",
    "ShrunkLDAClassifier": "training.linear_heads",
    "SoftmaxClassifier": "training.linear_heads",
    "advise": "strategy.advise",
    "auto": "strategy.auto",
    "compare": "experiments.compare",
    "evaluate": "heads.inference",
    "finetune": "finetuning.run",
    "fit": "experiments.fit",
    "load_head": "heads.io",
    "predict": "heads.inference",
    "save_head": "heads.io",
    "write_report": "report.write",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("headgraft")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
