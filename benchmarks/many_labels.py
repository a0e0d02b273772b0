"""What do 400 labels cost beside one?

50,000 rows of 512 drawn features; each label follows a direction of its own, and one row in ten or
more has it. Ridge with its path of alphas over five folds, statistics of the features included, as
nothing is kept between runs; then the whole of `fit`, with thresholds, calibration and intervals of
every metric. The median of three rounds, in turn.
"""

import shutil
import time

import numpy as np
from features import BUILD, drawn_cache
from machine import describe
from table import show
from threadpoolctl import threadpool_limits

from classify import fit
from classify.data.features import FeatureRows
from classify.data.targets.stratify import plan_target_folds
from classify.heads.targets.registry import get_target_head_spec
from classify.labels.targets.table import TargetTable
from classify.store import store_dir
from classify.training.targets.target_set import TargetSet
from classify.training.targets.train import train_targets

N_ROWS, DIM, N_LABELS, N_ROUNDS = 50_000, 512, 400, 3
LIMIT = 2.0  # times one label


def main() -> None:
    print(describe())
    cache = drawn_cache(BUILD / "many-labels.h5", N_ROWS, DIM)
    rows = FeatureRows.from_cache(cache, [cache.layer().name], np.arange(N_ROWS))
    rng = np.random.default_rng(0)
    scores = rows.to_array() @ rng.normal(size=(DIM, N_LABELS)).astype(np.float32)
    shares = rng.uniform(0.8, 0.9, N_LABELS)
    rare = [np.quantile(column, share) for column, share in zip(scores.T, shares, strict=True)]
    values = (scores > rare).astype(np.float64)
    plan = plan_target_folds(
        "multi",
        values,
        cache.column("sha256"),
        0,
        np.arange(N_ROWS),
        np.zeros(N_ROWS, bool),
    )
    seconds: dict[str, dict[int, list[float]]] = {"ridge": {}, "fit": {}}
    for _ in range(N_ROUNDS):
        for count in (1, N_LABELS):
            target_set = TargetSet(
                "multi", rows.with_preparation("root-l2"), values[:, :count], None, plan
            )
            begin = time.perf_counter()
            with threadpool_limits(1):
                train_targets(get_target_head_spec("ridge", "multi"), target_set)
            seconds["ridge"].setdefault(count, []).append(time.perf_counter() - begin)
            names = tuple(f"label{k:03}" for k in range(count))
            table = TargetTable("t", "t", cache.paths, "multi", names, values[:, :count])
            shutil.rmtree(store_dir(cache), ignore_errors=True)
            begin = time.perf_counter()
            fit(cache, table, "ridge", prepare="root-l2")
            seconds["fit"].setdefault(count, []).append(time.perf_counter() - begin)
    lines = []
    for what, by_count in seconds.items():
        one, many = (float(np.median(by_count[count])) for count in (1, N_LABELS))
        lines.append(
            {"what": what, "one label, s": one, f"{N_LABELS} labels, s": many, "times": many / one}
        )
    show(f"{N_LABELS} labels beside one", lines, f"The limit: ridge at most {LIMIT:g} times.")


if __name__ == "__main__":
    main()
