"""The head that `classify.fit` makes with every option at its default, from one label table.

    python benchmarks/default_head.py CACHE TABLE.csv

prints as JSON what it says of the test images. It is a process of its own, so that PYTHONPATH can
put another version of the packages before the installed one.
"""

import csv
import json
import sys

from threadpoolctl import threadpool_limits

import classify
from classify import CachedFeatures, fit


def main() -> None:
    cache, table = sys.argv[1:]
    with open(table, encoding="utf-8", newline="") as file:
        tested = [line["path"] for line in csv.DictReader(file) if line["split"] == "test"]
    head, record = fit(cache, table)
    layers = [layer.name for layer in head.source.layers]
    X = CachedFeatures(cache, layers).transform(tested)
    told = {
        "package": classify.__file__,
        "classes": head.classes,
        "predicted": head.predict(X).tolist(),
        "probabilities": head.predict_proba(X).tolist(),
        "layer": record.layer,
        "settings": record.settings,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
