"""A layer is a hyper-parameter: search over it like over any other.

    python data/digits/make.py build/digits
    python examples/layer_as_hyperparameter.py build/digits

Embeds the digits once, at every stage of the seedling; then scikit-learn's own grid search chooses
the layer and C together, from the cache, without running the network again.
"""

import csv
import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from classify import CachedFeatures
from featurize import run


def main(folder: Path) -> None:
    """Search, and print what was found."""
    cache = folder / "digits.h5"
    done = run(folder / "images", cache, backbone="seedling", layers="auto")
    print(f"{done.computed} images through the network")

    with open(folder / "digit.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    X, y = [row["path"] for row in rows], [row["label"] for row in rows]
    head = Pipeline(
        [
            ("features", CachedFeatures(cache)),
            ("scale", StandardScaler()),
            ("classify", LogisticRegression(max_iter=1000)),
        ]
    )
    grid = {"features__layer": ["stage2", "stage3", "stage4"], "classify__C": [0.001, 0.01]}
    search = GridSearchCV(head, grid, cv=3).fit(X, y)
    print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f} on held-out folds")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
