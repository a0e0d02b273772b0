"""Networks of timm with random numbers, small enough to be trained in a second."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors.torch import save_file

from classify.time_limit import EpochBudget

SIZE = 64


@pytest.fixture(scope="module")
def one_epoch_deadline() -> Iterator[Callable[[], float]]:
    """Gives deadlines of `fit` before which one epoch fits and no second one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochBudget, "allows_epoch", lambda budget: False)
        yield lambda: time.monotonic() + 3600


@pytest.fixture(scope="session")
def make_timm_network():
    """A network of timm without its classifier; every number is moved, so that each one counts."""
    timm = pytest.importorskip("timm")

    def make(architecture: str, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = timm.create_model(architecture, **({"num_classes": 0} | options))
            for parameter in network.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def make_timm_backbone(make_timm_network):
    def make(architecture: str, size: int = SIZE, **options):
        from featurize import Backbone

        recipe = {"resize": size, "crop": size, "mean": [0.5] * 3, "std": [0.25] * 3}
        network = make_timm_network(architecture, **options)
        return Backbone(network, name="net", preprocess=recipe)

    return make


@pytest.fixture(scope="session")
def vit_folder(make_timm_network, tmp_path_factory):
    """A vision transformer of six blocks in timm's layout, as people mail it to each other."""
    folder = tmp_path_factory.mktemp("folders") / "vit"
    folder.mkdir()
    network = make_timm_network("test_vit", img_size=SIZE, num_classes=5)
    save_file(network.state_dict(), folder / "model.safetensors")
    published = {"input_size": [3, SIZE, SIZE], "mean": [0.5] * 3, "std": [0.25] * 3}
    published |= {"interpolation": "bicubic", "crop_pct": 1.0, "fixed_input_size": True}
    config = {"architecture": "test_vit", "num_classes": 5, "pretrained_cfg": published}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
