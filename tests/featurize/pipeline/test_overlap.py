"""The network runs while the next batch is gathered, and a GPU has two batches at a time."""

import threading

import numpy as np
import pytest

from featurize import FeatureCache, run
from featurize.engines.base import ProcessorEngine
from featurize.engines.eager import EagerEngine
from featurize.extraction import setup
from featurize.pipeline.embedding import NetworkThread

SECONDS = 30  # a wait as long as this has failed
N_IMAGES = 20


@pytest.fixture
def folder(draw, tmp_path):
    return draw(tmp_path / "images", [f"{k:02}.png" for k in range(N_IMAGES)])


def use_engine(monkeypatch, make):
    """Let runs open an engine of the test's own, around eager."""

    def open_engine(backbone, layers, **options):
        module = backbone.cut(layers)
        return make(EagerEngine(module, backbone.preprocess, device="cpu", precision="float32"))

    monkeypatch.setattr(setup, "open_engine", open_engine)


def check_rows(folder, cache, tmp_path):
    """The rows are those of a plain run."""
    plain = tmp_path / "plain.h5"
    run(folder, plain, backbone="seedling", engine="eager")
    ours, theirs = FeatureCache(cache), FeatureCache(plain)
    (layer,) = theirs.layers
    difference = np.abs(ours.features(layer) - theirs.features(layer)).max()
    assert difference <= 1e-5 * np.abs(theirs.features(layer)).max()


def test_the_next_batch_is_gathered_while_one_runs(folder, tmp_path, monkeypatch):
    both_handed_over, handed_over = threading.Event(), []
    submit = NetworkThread.submit

    def noting(network, items, n_remaining):
        future = submit(network, items, n_remaining)
        handed_over.append(len(items))
        if len(handed_over) == 2:
            both_handed_over.set()
        return future

    monkeypatch.setattr(NetworkThread, "submit", noting)
    waits = []

    class Waiting(ProcessorEngine):
        name, device = "eager", "cpu"

        def __init__(self, eager):
            self._eager, self.batch_size, self.max_batch_size = eager, 4, 4

        def run(self, pixels):
            waits.append(both_handed_over.wait(SECONDS))
            return self._eager.run(pixels)

    with monkeypatch.context() as patch:
        use_engine(patch, Waiting)
        run(folder, tmp_path / "c.h5", backbone="seedling")
    assert waits
    assert all(waits)
    assert max(handed_over) == 4
    check_rows(folder, tmp_path / "c.h5", tmp_path)


def test_a_gpu_has_two_batches_at_a_time(folder, tmp_path, monkeypatch):
    in_flight, most = [], []
    second = threading.Event()

    class Pending:
        def __init__(self, features, number):
            self.features, self.number = features, number

        def collect(self):
            if self.number == 0:
                assert second.wait(SECONDS), "the second batch came after the first one's end"
            assert in_flight.pop(0) == self.number, "collected out of order"
            return self.features

    class Two:
        name, device, max_in_flight = "eager", "cpu", 2

        def __init__(self, eager):
            self._eager, self.batch_size, self.max_batch_size = eager, 4, 4
            self.n_submitted = 0

        def submit(self, pixels):
            in_flight.append(self.n_submitted)
            most.append(len(in_flight))
            self.n_submitted += 1
            if self.n_submitted == 2:
                second.set()
            features = self._eager.run(pixels)
            return Pending(features, in_flight[-1])

    with monkeypatch.context() as patch:
        use_engine(patch, Two)
        run(folder, tmp_path / "c.h5", backbone="seedling")
    assert max(most) == 2
    assert not in_flight
    check_rows(folder, tmp_path / "c.h5", tmp_path)
