"""A process that runs on a cache of parts, logs what it writes, and may kill itself.

``worker.py IMAGES OUTPUT PART_ROWS LOG [ROWS [SECONDS]]``: it dies by SIGKILL once it has marked so
many rows, or so many seconds after the first image.
"""

import json
import os
import signal
import sys
import threading

import torch

import featurize
from featurize.cache import writer

RECIPE = {"resize": 224, "crop": 224, "mean": [0.5] * 3, "std": [0.25] * 3}


def make_backbone():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=8), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3, stride=2)
    )
    return featurize.Backbone(network, name="toy", preprocess=RECIPE)


def main():
    images, output, part_rows, log, *limits = sys.argv[1:]
    max_rows = int(limits[0]) if limits else 0
    seconds = float(limits[1]) if limits[1:] else 0.0
    writer.SYNC_INTERVAL_SECONDS = 0.0
    n_marked, filled = 0, []
    fill, flush = writer.CacheWriter.fill, writer.CacheWriter.flush

    def logged_fill(self, rows, *arguments, **options):
        filled.extend([self.path.name, int(row)] for row in rows)
        return fill(self, rows, *arguments, **options)

    def logged_flush(self):
        nonlocal n_marked
        flush(self)
        if filled:
            with open(log, "a") as file:
                file.write(json.dumps(filled) + "\n")
            n_marked += len(filled)
            filled.clear()
        if max_rows and n_marked >= max_rows:
            os.kill(os.getpid(), signal.SIGKILL)

    writer.CacheWriter.fill, writer.CacheWriter.flush = logged_fill, logged_flush
    timers = []

    def report(_):
        if seconds and not timers:
            kill = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
            timers.append(kill)

    done = featurize.run(
        images,
        output,
        backbone=make_backbone(),
        layers="2",
        engine="eager",
        part_rows=int(part_rows) or None,
        report=report,
    )
    print(json.dumps(done.to_dict()))


main()
