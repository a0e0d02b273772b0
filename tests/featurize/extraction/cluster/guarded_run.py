"""A run whose network ends its process at a white image.

python guarded_run.py IMAGES CACHE CLUSTER
"""

import json
import os
import signal
import sys

import torch
from torch import fx, nn

import featurize

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
WHITE = 1.99


@fx.wrap
def end_at_white(x: torch.Tensor) -> torch.Tensor:
    if type(x) is torch.Tensor and x.device.type == "cpu" and (x > WHITE).flatten(1).all(1).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return x


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(end_at_white(x))


def main() -> None:
    torch.manual_seed(0)
    backbone = featurize.Backbone(Guarded(), name="guarded", preprocess=RECIPE)
    images, cache, cluster = sys.argv[1:]
    summary = featurize.run(images, cache, backbone=backbone, layers="conv", cluster=cluster)
    print(json.dumps(summary.to_dict()))


if __name__ == "__main__":
    main()
