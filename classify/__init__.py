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
    from classify.experiments.compare import Comparison, compare
    from classify.experiments.fit import HeadFit, fit
    from classify.experiments.repeats import RepeatedComparison
    from classify.experiments.zero_shot import make_zero_shot_head
    from classify.finetuning.estimator import FineTuneClassifier
    from classify.finetuning.run import FineTuneResult, finetune
    from classify.finetuning.trainer import TrainProgress
    from classify.heads.fitted import FittedHead
    from classify.heads.inference import Evaluation, evaluate, predict
    from classify.heads.io import load_head, save_head
    from classify.heads.predictions import Predictions
    from classify.heads.record import HeadProgress, HeadResult
    from classify.labels.table import LabelTable, read_labels
    from classify.report.write import write_report
    from classify.strategy.advise import Advice, advise
    from classify.strategy.auto import AutoResult, auto
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
    "Advice",
    "AutoResult",
    "CachedFeatures",
    "ClassifyError",
    "Comparison",
    "Evaluation",
    "FineTuneClassifier",
    "FineTuneResult",
    "FittedHead",
    "HeadClassifier",
    "HeadFit",
    "HeadProgress",
    "HeadResult",
    "LabelTable",
    "LinearSVMClassifier",
    "NearestMeanClassifier",
    "Predictions",
    "RepeatedComparison",
    "RidgeHeadClassifier",
    "RootL2",
    "ShrunkLDAClassifier",
    "SoftmaxClassifier",
    "TrainProgress",
    "advise",
    "auto",
    "compare",
    "evaluate",
    "finetune",
    "fit",
    "load_head",
    "make_zero_shot_head",
    "predict",
    "read_labels",
    "save_head",
    "write_report",
]

# Imported when first used: `import classify` and `classify --help` stay quick.
_HOMES = {
    "Advice": "strategy.advise",
    "AutoResult": "strategy.auto",
    "CachedFeatures": "training.cached_features",
    "ClassifyError": "errors",
    "Comparison": "experiments.compare",
    "Evaluation": "heads.inference",
    "FineTuneClassifier": "finetuning.estimator",
    "FineTuneResult": "finetuning.run",
    "FittedHead": "heads.fitted",
    "HeadClassifier": "training.estimators",
    "HeadFit": "experiments.fit",
    "HeadProgress": "heads.record",
    "HeadResult": "heads.record",
    "LabelTable": "labels.table",
    "LinearSVMClassifier": "training.linear_heads",
    "NearestMeanClassifier": "training.linear_heads",
    "Predictions": "heads.predictions",
    "RepeatedComparison": "experiments.repeats",
    "RidgeHeadClassifier": "training.linear_heads",
    "RootL2": "data.preparation",
    "ShrunkLDAClassifier": "training.linear_heads",
    "SoftmaxClassifier": "training.linear_heads",
    "TrainProgress": "finetuning.trainer",
    "advise": "strategy.advise",
    "auto": "strategy.auto",
    "compare": "experiments.compare",
    "evaluate": "heads.inference",
    "finetune": "finetuning.run",
    "fit": "experiments.fit",
    "load_head": "heads.io",
    "make_zero_shot_head": "experiments.zero_shot",
    "predict": "heads.inference",
    "read_labels": "labels.table",
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
