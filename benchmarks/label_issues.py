"""How many labels are listed as suspect, how many of those are wrong, and how many were expected?

4,000 training and 1,000 test images of CIFAR-10, of which some get another label at random. The
last row of a network is that without a change: what is listed there is in vain, or wrong in
CIFAR-10 itself. Doubted: labels of which another is five times as probable.
"""

import csv

import numpy as np
from features import BUILD, real
from machine import describe

from classify import compare
from classify.experiments.compare import check_data
from featurize import FeatureCache, run

N_IMAGES = {"train": 400, "test": 100}  # of each class
N_PLANTED = ((100, 0), (100, 1), (100, 2), (25, 0), (0, 0))
NETWORKS = (("lite0", "pre_logits,blocks.6"), ("seedling", "joined"))


def link_photos():
    """The folder; it is made once."""
    folder = BUILD / "label-issues"
    if not (folder / ".whole").exists():
        for side, most in N_IMAGES.items():
            for kind in sorted((real("cifar10") / side).iterdir()):
                (folder / side / kind.name).mkdir(parents=True, exist_ok=True)
                for image in sorted(kind.iterdir())[:most]:
                    target = folder / side / kind.name / image.name
                    target.unlink(missing_ok=True)
                    target.hardlink_to(image)
        (folder / ".whole").touch()
    return folder


def write_labels(cache: FeatureCache, n_planted: int, seed: int):
    """A label table with some labels changed, and the paths of those."""
    rng = np.random.default_rng(seed)
    given = {path: path.split("/")[1] for path in cache.paths}
    names = sorted(set(given.values()))
    wrong = {cache.paths[i] for i in rng.choice(len(cache.paths), n_planted, replace=False)}
    for path in cache.paths:
        if path in wrong:
            given[path] = str(rng.choice([name for name in names if name != given[path]]))
    table = BUILD / f"label-issues-{n_planted}-{seed}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path, label, path.split("/")[0]] for path, label in given.items())
    return table, wrong


def main() -> None:
    print(describe())
    columns = ("accuracy", "planted", "doubted", "listed", "wrong", "expected", "of first 50")
    print(f"{'network':10} " + " ".join(f"{name:>11}" for name in columns))
    for network, layers in NETWORKS:
        path = BUILD / f"label-issues-{network}.h5"
        run(link_photos(), path, backbone=network, layers="auto")
        cache = FeatureCache(path)
        for n_planted, seed in N_PLANTED:
            table, wrong = write_labels(cache, n_planted, seed)
            found = compare(cache, table, "softmax", layers, jobs=1)
            (checks,) = check_data(cache, found).values()
            review = checks.labels
            listed = [cache.paths[issue.row] for issue in review.issues]
            print(
                f"{network:10} {found.best.accuracy:11.3f} {n_planted:11} "
                f"{len(listed) + review.n_left_out:11} {len(listed):11} "
                f"{len(wrong & {*listed}):11} {review.expected_wrong:11.1f} "
                f"{len(wrong & {*listed[:50]}):11}"
            )


if __name__ == "__main__":
    main()
