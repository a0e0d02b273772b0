"""A run whose writer takes a while for each block; it prints what Ray spilled, and its memory.

python slow_driver.py IMAGES CACHE
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

import featurize
from featurize.extraction.cluster import session
from featurize.pipeline.write_behind import BackgroundWriter

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
DIM, SECONDS_A_BLOCK = 16_384, 0.4


def main() -> None:
    put, make_folder = BackgroundWriter.put, session.make_session_folder
    folders: list[Path] = []
    n_spilled = [0]

    def put_slowly(self, items, features):
        time.sleep(SECONDS_A_BLOCK)
        n_spilled.append(sum(1 for path in folders[0].rglob("*spilled_objects*/*")))
        put(self, items, features)

    def make_known_folder():
        folders.append(make_folder())
        return folders[0]

    BackgroundWriter.put, session.make_session_folder = put_slowly, make_known_folder
    network = torch.nn.Sequential(torch.nn.Conv2d(3, DIM, 1))
    backbone = featurize.Backbone(network, name="wide", preprocess=RECIPE)
    images, cache = sys.argv[1:]
    summary = featurize.run(images, cache, backbone=backbone, layers="0", cluster="local")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"rows": summary.computed, "spilled": max(n_spilled), "peak": peak_bytes}))


if __name__ == "__main__":
    main()
