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
    from classify.experiments.compare import Comparison
    from classify.experiments.fit import HeadFit
    from classify.experiments.grouping.propose import GroupProposal, find_groups
    from classify.experiments.repeats import RepeatedComparison
    from classify.experiments.targets.any_kind import compare, fit
    from classify.experiments.targets.compare import TargetComparison
    from classify.experiments.targets.fit import TargetHeadFit
    from classify.experiments.zero_shot import make_zero_shot_head
    from classify.finetuning.estimator import FineTuneClassifier
    from classify.finetuning.run import FineTuneResult, finetune
    from classify.finetuning.targets.estimators import (
        FineTuneMultiLabelClassifier,
        FineTuneOrdinalClassifier,
        FineTuneRegressor,
    )
    from classify.finetuning.targets.result import FineTuneTargetResult
    from classify.finetuning.trainer import TrainProgress
    from classify.heads.fitted import FittedHead
    from classify.heads.inference.any_kind import evaluate, predict
    from classify.heads.inference.classes import Evaluation
    from classify.heads.predictions import Predictions
    from classify.heads.record import HeadProgress, HeadResult
    from classify.heads.targets.fitted import FittedTargets
    from classify.heads.targets.predictions import PredictedTargets
    from classify.heads.targets.record import TargetResult
    from classify.heads.targets.saved import load_head, save_head
    from classify.labels.table import LabelTable, read_labels
    from classify.labels.targets.table import TargetTable
    from classify.report.write import write_report
    from classify.strategy.advise import Advice
    from classify.strategy.auto import AutoResult, auto
    from classify.strategy.targets.advise import TargetAdvice
    from classify.strategy.targets.any_kind import advise
    from classify.training.cached_features import CachedFeatures
    from classify.training.estimators import HeadClassifier
    from classify.training.linear_heads import (
        LinearSVMClassifier,
        NearestMeanClassifier,
        RidgeHeadClassifier,
        ShrunkLDAClassifier,
        SoftmaxClassifier,
    )
    from classify.training.targets.estimator import HeadRegressor

    __version__: str

__all__ = [
    "Advice",
    "AutoResult",
    "CachedFeatures",
    "ClassifyError",
    "Comparison",
    "Evaluation",
    "FineTuneClassifier",
    "FineTuneMultiLabelClassifier",
    "FineTuneOrdinalClassifier",
    "FineTuneRegressor",
    "FineTuneResult",
    "FineTuneTargetResult",
    "FittedHead",
    "FittedTargets",
    "GroupProposal",
    "HeadClassifier",
    "HeadFit",
    "HeadProgress",
    "HeadRegressor",
    "HeadResult",
    "LabelTable",
    "LinearSVMClassifier",
    "NearestMeanClassifier",
    "PredictedTargets",
    "Predictions",
    "RepeatedComparison",
    "RidgeHeadClassifier",
    "RootL2",
    "ShrunkLDAClassifier",
    "SoftmaxClassifier",
    "TargetAdvice",
    "TargetComparison",
    "TargetHeadFit",
    "TargetResult",
    "TargetTable",
    "TrainProgress",
    "advise",
    "auto",
    "compare",
    "evaluate",
    "find_groups",
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
    "Evaluation": "heads.inference.classes",
    "FineTuneClassifier": "finetuning.estimator",
    "FineTuneMultiLabelClassifier": "finetuning.targets.estimators",
    "FineTuneOrdinalClassifier": "finetuning.targets.estimators",
    "FineTuneRegressor": "finetuning.targets.estimators",
    "FineTuneResult": "finetuning.run",
    "FineTuneTargetResult": "finetuning.targets.result",
    "FittedHead": "heads.fitted",
    "FittedTargets": "heads.targets.fitted",
    "GroupProposal": "experiments.grouping.propose",
    "HeadClassifier": "training.estimators",
    "HeadFit": "experiments.fit",
    "HeadProgress": "heads.record",
    "HeadRegressor": "training.targets.estimator",
    "HeadResult": "heads.record",
    "LabelTable": "labels.table",
    "PredictedTargets": "heads.targets.predictions",
    "LinearSVMClassifier": "training.linear_heads",
    "NearestMeanClassifier": "training.linear_heads",
    "Predictions": "heads.predictions",
    "RepeatedComparison": "experiments.repeats",
    "RidgeHeadClassifier": "training.linear_heads",
    "RootL2": "data.preparation",
    "ShrunkLDAClassifier": "training.linear_heads",
    "SoftmaxClassifier": "training.linear_heads",
    "TargetAdvice": "strategy.targets.advise",
    "TargetComparison": "experiments.targets.compare",
    "TargetHeadFit": "experiments.targets.fit",
    "TargetResult": "heads.targets.record",
    "TargetTable": "labels.targets.table",
    "TrainProgress": "finetuning.trainer",
    "advise": "strategy.targets.any_kind",
    "auto": "strategy.auto",
    "compare": "experiments.targets.any_kind",
    "evaluate": "heads.inference.any_kind",
    "find_groups": "experiments.grouping.propose",
    "finetune": "finetuning.run",
    "fit": "experiments.targets.any_kind",
    "load_head": "heads.targets.saved",
    "make_zero_shot_head": "experiments.zero_shot",
    "predict": "heads.inference.any_kind",
    "read_labels": "labels.table",
    "save_head": "heads.targets.saved",
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
