"""What is advised where a run was bound by decoding or by the network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurize.extraction.completion import speed_hints
from featurize.extraction.completion.speed_hints import suggest_decode_mode, suggest_precision
from featurize.images import decoding
from featurize.images.preprocess import DECODE_MODES, Preprocess
from featurize.sources.folder import list_images

EXACT = Preprocess(8, 8, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def listing(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    return list_images(tmp_path)


def take_times(seconds, monkeypatch) -> None:
    """Let each mode take a time of its own, and give pixels of its own."""
    clock = [0.0]

    def decode(data, preprocess):
        number = DECODE_MODES.index(preprocess.decode)
        clock[0] += seconds[number]
        return np.full(3, number)

    monkeypatch.setattr(decoding, "decode_image", decode)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((10, 9, 9, 9), ""),
        ((10, 5, 10, 5), "--decode quick these images decode 2.0 times"),
        ((10, 5, 4.9, 4.8), "--decode quick these"),
        ((10, 9, 4, 3.9), "--decode fast these images decode 2.5 times"),
        ((10, 6, 4, 2), "--decode fastest these images decode 5.0 times"),
    ],
)
def test_the_least_change_that_pays_is_advised(listing, monkeypatch, seconds, expected):
    take_times(seconds, monkeypatch)
    said = suggest_decode_mode(listing, EXACT)
    assert expected in said if expected else said == ""


def test_what_is_not_installed_is_not_advised(listing, monkeypatch):
    take_times((10, 2, 10, 2), monkeypatch)
    monkeypatch.setattr(speed_hints, "find_spec", lambda name: None)
    assert suggest_decode_mode(listing, EXACT) == ""


def test_precision_is_advised_where_it_is_faster(monkeypatch, tmp_path):
    info = Path(tmp_path / "cpuinfo")
    monkeypatch.setattr("featurize.system.cpu.CPU_INFO", info)
    assert suggest_precision("cpu", "float32") == ""  # nothing is known
    info.write_text("model name : x\nflags : fpu amx_bf16 amx_tile\n")
    assert "--precision bf16" in suggest_precision("cpu", "float32")
    assert suggest_precision("cpu", "bf16") == ""
    info.write_text("model name : x\nflags : fpu avx512_bf16\n")
    assert suggest_precision("cpu", "float32") == ""
    assert "tf32" in suggest_precision("cuda:1", "float32")
