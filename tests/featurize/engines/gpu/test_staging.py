"""The staging of batches on a GPU, in every order that a GPU may choose; no GPU is needed.

A stand-in for `torch` queues what is asked of a stream, and carries it out late, at random: one
operation of any stream that may go on, whenever anything else is asked for. Memory of the device is
touched by such operations alone. The compiled network has one memory for its outputs, as a CUDA
graph has. So a wait that is missing shows as wrong features, under some of the seeds.
"""

import contextlib
import inspect
import random
import types

import numpy as np
import pytest

from featurize.engines.gpu import staging as gpu_staging

SEEDS = 300
# Each keeps an order that nothing else keeps. The buffers' first copy needs none of them.
WAITS = (
    "self.copied.synchronize()",
    "stream.wait_event(self.used)",
    "current.wait_event(buffer.copied)",
    "buffer.used.record(current)",
    "self.copied.record(stream)",
    "finished.record(current)",
    "self._finished.synchronize()",
)


class Machine:
    """Streams, and when their operations are carried out."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.streams = []
        self.current = self.new_stream()
        self.laziness = self.random.choice([0.0, 0.3, 0.9])
        self.favourite = self.random.choice([None, 0, 1])  # a stream that runs ahead

    def new_stream(self, _device=None):
        stream = Stream(self)
        self.streams.append(stream)
        return stream

    def carry_out_one(self):
        ready = [stream for stream in self.streams if stream.may_go_on()]
        if self.favourite is not None:
            ready = [
                s for s in ready if s is self.streams[self.favourite % len(self.streams)]
            ] or ready
        if ready:
            self.random.choice(ready).queue.pop(0)[1]()
        return bool(ready)

    def pass_time(self):
        while self.random.random() > self.laziness and self.carry_out_one():
            pass

    def wait_until(self, holds):
        while not holds():
            assert self.carry_out_one(), "the host waits for what never happens"


class Stream:
    def __init__(self, machine):
        self.machine, self.queue = machine, []

    def may_go_on(self):
        return bool(self.queue) and self.queue[0][0]()

    def add(self, operation, condition=lambda: True):
        self.machine.pass_time()
        self.queue.append((condition, operation))
        self.machine.pass_time()

    def wait_event(self, event):
        number = event.n_recorded
        self.add(lambda: None, lambda: event.n_happened >= number)

    def wait_stream(self, other):
        event = Event(self.machine)
        event.record(other)
        self.wait_event(event)


class Event:
    """Counts how often it was recorded; one that never was has happened."""

    def __init__(self, machine):
        self.machine, self.n_recorded, self.n_happened = machine, 0, 0

    def record(self, stream):
        self.n_recorded += 1
        number = self.n_recorded

        def happen():
            self.n_happened = max(self.n_happened, number)

        stream.add(happen)

    def synchronize(self):
        number = self.n_recorded
        self.machine.wait_until(lambda: self.n_happened >= number)


class Tensor:
    def __init__(self, machine, values, is_on_device):
        self.machine, self.values, self.is_on_device = machine, values, is_on_device

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, key):
        assert not self.is_on_device
        return Tensor(self.machine, self.values[key], False)

    def copy_(self, source, non_blocking=False):
        def copy():
            self.values[...] = source.values

        if self.is_on_device or source.is_on_device:
            assert non_blocking, "the host would wait for the device"
            self.machine.current.add(copy)
        else:
            self.machine.pass_time()
            copy()
        return self

    def float(self):
        return self  # a copy in the order of the stream would hide nothing

    def numpy(self):
        assert not self.is_on_device
        return self.values


class Network:
    """What is compiled: the first and the last pixel of each image, in one memory for all calls."""

    def __init__(self, machine):
        self.machine, self.outputs = machine, {}

    def __call__(self, on_device):
        size = on_device.shape[0]
        if size not in self.outputs:
            values = np.full((size, 2), -1.0, np.float32)
            self.outputs[size] = Tensor(self.machine, values, True)
        output = self.outputs[size]

        def compute():
            output.values[:, 0] = on_device.values[:, 0, 0, 0]
            output.values[:, 1] = on_device.values[:, -1, -1, -1]

        self.machine.current.add(compute)
        return (output,)


def stand_in_for_torch(machine):
    @contextlib.contextmanager
    def stream(chosen):
        before, machine.current = machine.current, chosen
        try:
            yield
        finally:
            machine.current = before

    def empty(shape, dtype=None, device=None, pin_memory=False):
        assert (device is None) == pin_memory, "only pinned memory is copied without a wait"
        return Tensor(machine, np.full(shape, 77, dtype), device is not None)

    cuda = types.SimpleNamespace(
        Stream=machine.new_stream,
        Event=lambda: Event(machine),
        current_stream=lambda device: machine.current,
        stream=stream,
        device=lambda device: contextlib.nullcontext(),
    )
    return types.SimpleNamespace(
        cuda=cuda,
        empty=empty,
        uint8=np.uint8,
        float32=np.float32,
        from_numpy=lambda values: Tensor(machine, values, False),
    )


def load_staging(source):
    module = types.ModuleType("staging")
    exec(compile(source, "gpu_staging.py", "exec"), module.__dict__)
    return module


def is_right(module, seed):
    """Whether a run with several batches in flight gives every image its features.

    The pipeline has two; with more the staging itself has to wait for its buffers.
    """
    machine = Machine(seed)
    most_in_flight = machine.random.choice([1, 2, 2, 3, 4])
    module.torch = stand_in_for_torch(machine)
    staging, network = module.GpuStaging("cuda"), Network(machine)
    numbers = np.random.default_rng(seed)
    sizes = [8, 8, 8, 8, 5, 8, 4, 4, 4, 4, 3]  # padded to 8, then to 4: as after memory ended
    pending, found, expected = [], [], []
    for place, n_images in enumerate(sizes):
        pixels = numbers.integers(0, 256, (n_images, 2, 2, 3), np.uint8)
        expected.append(np.stack([pixels[:, 0, 0, 0], pixels[:, -1, -1, -1]], 1))
        if len(pending) == most_in_flight:
            found += pending.pop(0).collect()
        pending.append(staging.submit(pixels, 8 if place < 6 else 4, network))
        pixels[:] = 255  # the caller's own again
    for staged in pending:
        found += staged.collect()
    return all(map(np.array_equal, found, expected))


@pytest.fixture(scope="module")
def source():
    return inspect.getsource(gpu_staging)


def test_features_are_right_in_every_order(source):
    module = load_staging(source)
    assert [seed for seed in range(SEEDS) if not is_right(module, seed)] == []


@pytest.mark.parametrize("wait", WAITS)
def test_each_wait_is_needed(source, wait):
    """Without it some order gives wrong features, or a wait never ends."""
    assert source.count(f"{wait}\n") + source.count(f"{wait}  #") == 1
    module = load_staging(source.replace(wait, "None"))
    for seed in range(SEEDS):
        try:
            if not is_right(module, seed):
                return
        except AssertionError:
            return
    raise AssertionError(f"nothing shows that {wait} is gone")
