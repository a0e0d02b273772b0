"""The run from outside: what it says, what it holds in memory, where it computes."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featurize import Backbone, Estimate, FeatureCache, Summary, run
from featurize.cli.progress import format_line
from featurize.images import decoding as images_module
from featurize.pipeline.stats import STAGES, RunStats
from featurize.progress import Step
from featurize.text import format_bytes, format_duration

RECIPE = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
KEYS = {
    *("cache", "rows", "computed", "reused", "failed", "seconds"),
    *("images_per_second", "bound", "layers"),
}
LINE = re.compile(
    r"^embedding: ([\d,]+) of ([\d,]+), (?:([\d:]+( s)?) left, )?([\d,]+) images/s, "
    r"read (\d+)%, decode (\d+)%, run (\d+)%, write (\d+)%$"
)


@pytest.fixture
def folder(draw, tmp_path):
    return draw(tmp_path / "images", [f"{k:03}.png" for k in range(40)])


class Slow(nn.Module):
    """Looks at its input for a while, so that the network is what bounds the run."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.more = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(40)))

    def forward(self, x):
        return self.more(self.conv(x))


def slow() -> Backbone:
    torch.manual_seed(0)
    return Backbone(Slow(), name="slow", preprocess={**RECIPE, "resize": 64, "crop": 64})


# --- what it says --------------------------------------------------------------------------


@pytest.mark.long
def test_the_live_line_of_a_terminal(folder, tmp_path):
    """On a terminal one line is written over again; it is gone in the end."""
    # A child, so that its stderr can be a real terminal of its own.
    code = (
        "import sys\n"
        "import featurize.cli.progress as progress\n"
        "progress.REDRAW_SECONDS = 0.0  # at every image\n"
        "from featurize.__main__ import main\n"
        "main()\n"
    )
    output = tmp_path / "c.h5"
    line_ = ["run", str(folder), "-o", str(output), "--backbone", "seedling", "--json"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *line_],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:  # the other end is closed: EIO
                break
            if not some:
                break
            said += some
        os.close(ours)
        out = process.stdout.read()
    assert process.returncode == 0, said
    assert json.loads(out)["computed"] == 40
    drawn = re.sub(r"\x1b\[[\d;]*m", "", said.decode()).split("\r\x1b[2K")
    shown = [part.partition("\r\n")[0] for part in drawn if " of 40" in part]
    assert len(shown) >= 10
    # It is cut at the terminal's width rather than wrapped.
    assert max(map(len, shown)) <= 40
    done = [int(re.search(r"embedding: (\d+) of 40", part)[1]) for part in shown]
    assert done == sorted(done)
    assert done[-1] <= 40
    assert said.decode().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the line gone


def test_a_step_as_a_line():
    assert format_line(Step("heads", 1_200, 3_000, "ncm"), 9.0) == (
        "heads: 1,200 of 3,000, 9 s left, ncm"
    )
    assert format_line(Step("reading images", 1, 3), None) == "reading images: 1 of 3"


def test_the_line_holds_done_rate_time_left_and_shares(folder, tmp_path, toy):
    seen, lines = [], []

    def report(measure: RunStats) -> None:
        seen.append((measure.done, measure.total, measure.seconds_left))
        lines.append(format_line(measure, measure.seconds_left))

    run(folder, tmp_path / "c.h5", backbone=toy, layers="2", report=report)
    assert all(LINE.match(text) for text in lines), lines[0]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][:2] == (40, 40)
    assert seen[-1][2] == 0.0
    assert lines[-1].startswith("embedding: 40 of 40, ")
    shares = [int(share) for share in LINE.match(lines[-1]).groups()[5:]]
    assert 98 <= sum(shares) <= 102


def test_figures_as_people_write_them():
    assert [format_duration(s) for s in (None, 0.2, 9.4, 59.4, 61, 309, 7509)] == [
        *("-", "0 s", "9 s", "59 s", "1:01", "5:09", "2:05:09"),
    ]
    assert [format_duration(s) for s in (59.5, 59.9, 3599.7)] == ["1:00", "1:00", "1:00:00"]
    shown = ["0 bytes", "999 bytes", "3.2 MB", "1.0 TB"]
    assert [format_bytes(n) for n in (0, 999, 3.2e6, 1e12)] == shown


def test_a_sentence_says_what_bounded_the_run(folder, tmp_path, cli):
    done = cli("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    assert done.exit_code == 0
    *_, counts, network, verdict = done.stdout.splitlines()
    assert counts.startswith(f"{tmp_path / 'c.h5'}: 40 rows; 40 computed, 0 reused, 0 failed, in ")
    assert re.match(r"40 images went through the network, once each, at [\d,]+ images/s\.", network)
    assert re.search(
        r"bounded this run; .* would help \(read \d+%, decode \d+%, run \d+%, write \d+%", verdict
    )
    again = cli("run", folder, "-o", tmp_path / "c.h5")
    assert again.stdout.splitlines()[-1] == "Nothing to compute."


def test_the_bound_is_the_network_where_it_is(folder, tmp_path):
    done = run(folder, tmp_path / "c.h5", backbone=slow(), layers="more")
    assert done.bound == "run"
    assert done.verdict.startswith("The network bounded this run; an earlier cut or a faster")
    assert done.images_per_second > 0


def test_the_bound_is_decoding_where_it_is(tmp_path, toy):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):  # noise is what a decoder has most to do with
        pixels = rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.jpg", quality=95)
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="0")
    assert done.bound == "decode"
    assert done.verdict.startswith("Decoding images bounded this run; more cores would help")


@pytest.mark.parametrize("stage", [*STAGES, "network"])
def test_each_stage_can_be_the_bound(stage):
    """The figures of a measurement, and the stage they speak of."""
    measure = RunStats(workers=2, is_remote=stage == "network")
    measure.images_run = 9
    measure.stage_seconds |= {"read": 0.1, "decode": 0.2, "run": 1.0, "write": 0.1}
    if stage == "write":
        measure.wait_seconds["output"] = 9.0
    elif stage != "run":
        measure.wait_seconds["input"] = 5.0
        waits = stage in ("read", "network")  # decoders that have nothing to decode
        (measure.wait_seconds if waits else measure.stage_seconds)["read" if waits else stage] = 9.0
    assert measure.bottleneck == stage
    assert sum(measure.stage_shares.values()) == pytest.approx(1)
    said = measure.describe_bottleneck()
    assert said.startswith(
        {
            "read": "Reading files",
            "network": "Fetching images",
            "decode": "Decoding",
            "run": "The network",
            "write": "Writing",
        }[stage]
    )


def test_nothing_that_was_computed_is_no_bound(folder, tmp_path, toy):
    run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    again = run(folder, tmp_path / "c.h5", backbone=toy)
    assert (again.bound, again.images_per_second) == ("none", 0.0)
    assert again.verdict == "Nothing to compute."


# --- --json --------------------------------------------------------------------------------


def test_json_is_one_object_and_progress_goes_to_stderr(folder, tmp_path, command):
    line_ = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", "--layers", "auto")
    (folder / "bad.jpg").write_text("no image")
    done = command("featurize", *line_, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)  # one object and nothing else
    assert done.stdout.count("\n") == 1
    assert set(found) >= KEYS
    assert found["cache"] == str(tmp_path / "c.h5")
    assert (found["rows"], found["computed"], found["reused"], found["failed"]) == (41, 40, 0, 1)
    assert found["layers"] == ["stage1", "stage2", "stage3", "stage4"]
    assert found["bound"] in STAGES
    assert found["failures"] == {"bad.jpg": "not an image"}
    assert "seedling, weights V1" in done.stderr
    assert "shorter side to 32, centre 32 x 32" in done.stderr
    assert found["seconds"] > 0


def test_json_of_an_unchanged_collection(folder, tmp_path, cli):
    line_ = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", "--json")
    assert json.loads(cli(*line_).stdout)["computed"] == 40
    done = cli(*line_)
    found = json.loads(done.stdout)
    assert (found["computed"], found["reused"], found["bound"]) == (0, 40, "none")
    assert set(found) >= KEYS
    assert done.stderr == ""


def test_names_beyond_ascii_pass_through_json(draw, tmp_path, cli):
    folder = draw(tmp_path / "ö ø", ["日本.png"])
    (folder / "наш.jpg").write_text("no image")
    done = cli("run", folder, "-o", tmp_path / "ä.h5", "--backbone", "seedling", "--json")
    found = json.loads(done.stdout)
    assert found["cache"].endswith("ä.h5")
    assert found["failures"] == {"наш.jpg": "not an image"}


# --- --dry-run -----------------------------------------------------------------------------


def test_dry_run_says_count_bytes_and_time_and_writes_nothing(folder, tmp_path, cli):
    line_ = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling", "--layers", "auto")
    done = cli(*line_, "--dry-run")
    assert done.exit_code == 0
    first, second, third = done.stdout.splitlines()
    assert first == "40 images, 40 of them to compute"
    assert re.search(r"c\.h5: [\d.]+ kB, layers stage1, stage2, stage3, stage4$", second)
    assert re.match(r"about [\d:]+( s)? at [\d,]+ images/s$", third)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}
    found = json.loads(cli(*line_, "--dry-run", "--json").stdout)
    assert (found["rows"], found["to_compute"]) == (40, 40)
    assert found["seconds"] > 0
    cli(*line_)
    # What it promised is what came: to a few pages.
    assert abs((tmp_path / "c.h5").stat().st_size - found["bytes"]) < 40_000


@pytest.mark.long
def test_dry_run_of_a_cache_that_is_there(folder, draw, tmp_path, cli):
    line_ = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    cli(*line_)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for more, to_compute in (((), 0), (("--layers", "stage1"), 40)):
        found = json.loads(cli(*line_, *more, "--dry-run", "--json").stdout)
        assert (found["rows"], found["to_compute"]) == (40, to_compute)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    draw(folder, ["new.png", "newer.png"], seed=9)
    (folder / "000.png").unlink()
    found = json.loads(cli(*line_, "--dry-run", "--json").stdout)
    assert (found["rows"], found["to_compute"]) == (41, 2)


def test_dry_run_downloads_no_weights(folder, tmp_path, monkeypatch):
    def offline(*_arguments, **_options):
        raise AssertionError("a dry run downloads nothing")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    found = run(folder, tmp_path / "c.h5", backbone="mobilenet_v3_small", dry_run=True)
    assert isinstance(found, Estimate)
    assert found.layers == ["classifier.1"]
    assert found.bytes > 40 * 1024 * 4


# --- from Python ---------------------------------------------------------------------------


def test_run_with_a_network_of_ones_own(folder, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True))
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    torch.manual_seed(0)
    network = Net()
    said, reports = [], []
    done = run(
        str(folder),
        str(tmp_path / "c.h5"),
        backbone=Backbone(network, name="mine", preprocess=RECIPE),
        layers="body,head",
        pool="avg",
        say=said.append,
        report=reports.append,
    )
    assert isinstance(done, Summary)
    assert (done.rows, done.computed, done.layers) == (40, 40, ["body", "head"])
    assert any("mine, weights own" in text for text in said)
    assert isinstance(reports[-1], RunStats)
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.iterdir())])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        maps = network.eval().body(x)
        expected = {"body": maps.mean((2, 3)), "head": network.head(maps.mean((2, 3)))}
    cache = FeatureCache(tmp_path / "c.h5")
    for name, wanted in expected.items():
        off = np.linalg.norm(cache.features(name) - wanted.numpy(), axis=1)
        assert (off <= 1e-5 * np.linalg.norm(wanted.numpy(), axis=1)).all()
    assert cache.extractor.backbone == "mine"
    assert done.to_dict()["rows"] == 40


def test_half_precision_is_stored_but_not_computed(folder, tmp_path, toy):
    run(folder, tmp_path / "single.h5", backbone=toy, layers="2")
    run(folder, tmp_path / "half.h5", backbone=toy, layers="2", dtype="float16")
    single, half = FeatureCache(tmp_path / "single.h5"), FeatureCache(tmp_path / "half.h5")
    assert half.layer("2").dtype == "<f2"
    assert np.array_equal(single.features("2").astype(np.float16), half.features("2"))


def test_the_callers_threads_and_random_numbers_are_left_alone(folder, tmp_path, toy):
    torch.manual_seed(5)
    np.random.seed(5)
    wanted = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    alive = threading.active_count()
    run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == before
    assert torch.equal(torch.rand(3), wanted[0])
    assert np.array_equal(np.random.rand(3), wanted[1])
    assert threading.active_count() == alive


# --- bounded memory ------------------------------------------------------------------------


class Counting:
    """Counts the images that are decoded and not yet through the network."""

    def __init__(self, monkeypatch, hold: threading.Event | None = None) -> None:
        self.lock = threading.Lock()
        self.decoded = self.used = self.most = 0
        decode = images_module.decode_image

        def counted(*arguments):
            pixels = decode(*arguments)
            with self.lock:
                self.decoded += 1
                self.most = max(self.most, self.decoded - self.used)
            return pixels

        monkeypatch.setattr("featurize.images.decoding.decode_image", counted)
        from featurize.engines import eager

        through = eager.EagerEngine.run

        def observed(engine, pixels):
            if hold is not None:
                hold.wait(60)
            features = through(engine, pixels)
            with self.lock:
                self.used += len(pixels)
            return features

        monkeypatch.setattr("featurize.engines.eager.EagerEngine.run", observed)


@pytest.mark.parametrize("count", [150, 600])
def test_images_are_decoded_a_bounded_number_ahead(count, draw, tmp_path, toy, monkeypatch):
    """Whatever their number: a few batches, and one image a decoding thread."""
    monkeypatch.setattr(
        "featurize.engines.torch_settings._PIXELS_PER_BATCH", 0
    )  # eight images each
    counting = Counting(monkeypatch)
    folder = draw(tmp_path / "images", [f"{k:04}.png" for k in range(count)])
    done = run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert (done.computed, counting.used) == (count, count)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Before the engine says how large its batches are, 32 are taken for granted.
    assert counting.most <= 2 * 32 + 32 + 2 * workers


@pytest.mark.long
def test_a_network_that_stands_still_stops_the_decoding(draw, tmp_path, toy, monkeypatch):
    """Decoding waits for it, at the same bound, however long that takes."""
    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    hold = threading.Event()
    counting = Counting(monkeypatch, hold)
    folder = draw(tmp_path / "images", [f"{k:04}.png" for k in range(400)])
    found = []
    runner = threading.Thread(
        target=lambda: found.append(run(folder, tmp_path / "c.h5", backbone=toy, layers="2"))
    )
    runner.start()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bound = 2 * 32 + 32 + 2 * workers
    # It is still as soon as no image more is decoded; a run without a bound would get to 400.
    before = -1
    while before != counting.decoded or not counting.decoded:
        before = counting.decoded
        runner.join(1.0)
    assert counting.decoded <= bound
    assert not found
    hold.set()
    runner.join()
    assert found[0].computed == 400
    assert counting.most <= bound


@pytest.mark.long
def test_the_writer_holds_a_bounded_number_of_batches(draw, tmp_path, toy, monkeypatch):
    """A disk that is behind stops the network."""
    from featurize.cache.writer import CacheWriter

    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    go, through, written = threading.Event(), [], []
    counting = Counting(monkeypatch)
    fill = CacheWriter.fill

    def late(writer, rows, *rest):
        go.wait(60)
        through.append(counting.used)
        written.append(len(rows))
        return fill(writer, rows, *rest)

    monkeypatch.setattr(CacheWriter, "fill", late)
    folder = draw(tmp_path / "images", [f"{k:04}.png" for k in range(400)])
    found = []
    runner = threading.Thread(
        target=lambda: found.append(run(folder, tmp_path / "c.h5", backbone=toy, layers="2"))
    )
    runner.start()
    before = -1
    while before != counting.used or not counting.used:
        before = counting.used
        runner.join(1.0)
    assert counting.used <= 10 * 8
    go.set()
    runner.join()
    assert found[0].computed == sum(written) == 400
    assert FeatureCache(tmp_path / "c.h5").verify() == []


# --- stopping ------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_done(draw, tmp_path, toy, monkeypatch):
    from featurize.errors import RunInterruptedError

    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    folder = draw(tmp_path / "images", [f"{k:04}.png" for k in range(100)])
    calls = []

    def report(measure: RunStats) -> None:
        calls.append(measure.done)
        if len(calls) == 50:
            raise KeyboardInterrupt

    alive = threading.active_count()
    with pytest.raises(
        RunInterruptedError, match=r"rows are done and kept.*The same command goes on"
    ):
        run(folder, tmp_path / "c.h5", backbone=toy, layers="2", report=report)
    assert threading.active_count() == alive
    kept = FeatureCache(tmp_path / "c.h5").counts["ok"]
    assert 32 <= kept < 100  # of six batches of eight at most two are in the network
    done = run(folder, tmp_path / "c.h5", backbone=toy)
    assert (done.computed, done.reused) == (100 - kept, kept)
    assert FeatureCache(tmp_path / "c.h5").verify() == []


def test_an_error_in_the_network_keeps_what_is_done(draw, tmp_path, toy, monkeypatch):
    from featurize.engines import eager

    monkeypatch.setattr("featurize.engines.torch_settings._PIXELS_PER_BATCH", 0)
    folder = draw(tmp_path / "images", [f"{k:04}.png" for k in range(60)])
    through, calls = eager.EagerEngine.run, []

    def breaks(engine, pixels):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise RuntimeError("the device is gone")
        return through(engine, pixels)

    with monkeypatch.context() as patched:
        patched.setattr("featurize.engines.eager.EagerEngine.run", breaks)
        with pytest.raises(RuntimeError, match="the device is gone"):
            run(folder, tmp_path / "c.h5", backbone=toy, layers="2")
    assert FeatureCache(tmp_path / "c.h5").counts["ok"] == 24
    assert run(folder, tmp_path / "c.h5", backbone=toy).computed == 36


# --- on a GPU ------------------------------------------------------------------------------


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor(draw, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
        coarse.resize((90, 70), Image.Resampling.BICUBIC).save(folder / f"{k:02}.png")
    for device in ("cpu", "cuda"):
        done = run(
            folder,
            tmp_path / f"{device}.h5",
            backbone="seedling",
            layers="auto,stage2:max,stage4:none",
            device=device,
        )
        assert done.computed == 40
    cpu, cuda = FeatureCache(tmp_path / "cpu.h5"), FeatureCache(tmp_path / "cuda.h5")
    for name, info in cpu.layers.items():
        assert cuda.layers[name].fingerprint == info.fingerprint
        expected = cpu.features(name)
        off = np.linalg.norm(cuda.features(name) - expected, axis=1)
        assert (off <= 1e-4 * np.linalg.norm(expected, axis=1)).all(), name
    # Where it was computed is not part of the fingerprint: either device goes on.
    again = run(folder, tmp_path / "cuda.h5", layers="stage1:max", device="cpu")
    assert again.computed == 40


def test_no_cuda_is_said(folder, tmp_path, cli):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    line_ = ("run", folder, "-o", tmp_path / "c.h5", "--backbone", "seedling")
    done = cli(*line_, "--device", "cuda")
    assert done.exit_code == 2
    assert "no CUDA device here; use --device cpu" in done.stderr
    assert not Path(tmp_path / "c.h5").exists()
    done = cli(*line_, "--precision", "tf32")
    assert done.exit_code == 2
    assert "tf32 is for GPUs" in done.stderr
    assert not Path(tmp_path / "c.h5").exists()
