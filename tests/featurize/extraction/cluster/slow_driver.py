"""A run whose writer takes a while for each block; it prints what Ray spilled, and its memory.

python slow_driver.py IMAGES CACHE
"""

import json
import resource
import sys
import time

import torch

import featurize
from featurize.extraction.cluster.session import ClusterSession
from featurize.pipeline.write_behind import BackgroundWriter

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
DIM, SECONDS_A_BLOCK = 16_384, 0.4


def main() -> None:
    put, leave = BackgroundWriter.put, ClusterSession.__exit__
    memory = []

    def put_slowly(self, items, features):
        time.sleep(SECONDS_A_BLOCK)
        put(self, items, features)

    def look_and_leave(self, *error):
        from ray._private.internal_api import memory_summary

        memory.append(memory_summary(stats_only=True))
        leave(self, *error)

    BackgroundWriter.put, ClusterSession.__exit__ = put_slowly, look_and_leave
    network = torch.nn.Sequential(torch.nn.Conv2d(3, DIM, 1))
    backbone = featurize.Backbone(network, name="wide", preprocess=RECIPE)
    images, cache = sys.argv[1:]
    summary = featurize.run(images, cache, backbone=backbone, layers="0", cluster="local")
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rows": summary.computed, "store": memory[0], "peak": peak_kilobytes << 10}))


if __name__ == "__main__":
    main()
