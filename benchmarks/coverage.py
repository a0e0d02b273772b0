"""Do printed intervals hold what they promise, 95 %, also where images come in groups?

Of Omniglot (classes: alphabets; groups: characters, 20 drawings each) a head learns half of the
characters. The other half is all there is to know: its accuracy there is the truth. Test sets are
drawn from it many times, whole characters or single drawings, and each time the interval is
computed that `classify` prints. The share of them that holds the truth is the coverage. Beside it,
what the same intervals would cover if they took every image for one of its own.
"""

from dataclasses import fields, replace

import numpy as np
from features import BUILD, real
from machine import describe

from classify import compare
from classify.evaluation.metrics import estimate_proportion
from classify.evaluation.paired import compare_paired
from classify.labels.folders import TEST
from classify.labels.table import LabelTable, read_labels
from featurize import FeatureCache, run

DRAWS = 400
GROUPS, IMAGES = (20, 39), 300
HEADS = "softmax,ncm"


def outcomes_of(found):
    """Each head's right and wrong answers on the test half, and their units."""
    by_head = {result.record.head: result.test for result in found.results}
    rows = by_head["softmax"].rows
    return by_head, found.tasks[0].units[np.searchsorted(found.tasks[0].rows, rows)]


def drawn(answers, positions):
    """Answers on images drawn, possibly more than once, each with a row of its own."""
    some = {field.name: getattr(answers, field.name)[positions] for field in fields(answers)}
    return replace(answers, **some | {"rows": np.arange(len(positions))})


def main() -> None:
    print(describe())
    folder = real("omniglot-alphabets")
    table = read_labels(next(folder.rglob("labels.csv")))
    cache = BUILD / "omniglot.h5"
    run(next(folder.rglob("labels.csv")).parent, cache, backbone="seedling", layers="stage4")
    opened = FeatureCache(cache)
    names = sorted(set(table.groups))
    learnt = set(np.random.default_rng(0).permutation(names)[: len(names) // 2])
    split = ["train" if group in learnt else TEST for group in table.groups]
    halves = LabelTable("halves", table.source, table.paths, table.labels, split, table.groups)
    by_head, unit = outcomes_of(compare(opened, halves, HEADS, jobs=1))
    members = [np.flatnonzero(unit == k) for k in np.unique(unit)]
    a, b = by_head["softmax"], by_head["ncm"]
    truth, apart = a.correct.mean(), a.correct.mean() - b.correct.mean()
    print(f"{len(members)} characters to draw from, accuracy {truth:.3f}, "
          f"two heads {apart:+.3f} apart, {DRAWS} draws each")  # fmt: skip
    print(f"{'test set':24} {'accuracy':>9} {'by image':>9} {'difference':>11} {'by image':>9}")
    rng = np.random.default_rng(1)
    for kind, count in [*(("characters", n) for n in GROUPS), ("single drawings", IMAGES)]:
        held = np.zeros(4)
        for draw in range(DRAWS):
            if kind == "characters":
                chosen = [members[k] for k in rng.integers(0, len(members), count)]
                some, units = (
                    np.concatenate(chosen),
                    np.repeat(np.arange(count), [*map(len, chosen)]),
                )
            else:
                some, units = rng.integers(0, len(unit), count), None
            one, other = drawn(a, some), drawn(b, some)
            for i, given in enumerate((units, None)):
                low, high = estimate_proportion(one.correct, given, draw)[1]
                held[i] += low <= truth <= high
                found = compare_paired(one, other, given, seed=draw)
                held[i + 2] += found.low <= apart <= found.high
        shares = held / DRAWS
        print(f"{count:4} {kind:19} {shares[0]:9.3f} {shares[1]:9.3f} "
              f"{shares[2]:11.3f} {shares[3]:9.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
