"""The table of `auto`: no name is cut at any width, and what is compared with what is said."""

import re
from types import SimpleNamespace

import pytest

from classify.cli.tables.auto import show_auto
from classify.strategy.tried.better import BetterCandidate
from classify.strategy.tried.candidates import Candidate

LONG = "blocks.11.attn.proj:token"
LAYERS = ["blocks.5.mlp.fc2", LONG, "pre_logits"]


@pytest.fixture
def result():
    """What `auto` gives, as far as it is printed."""
    saved = Candidate("linear-probe", LONG, 0.81, 0.8, (0.77, 0.83), None, 0, 9, 3.0)
    joined = Candidate(
        "linear-probe", "+".join(LAYERS), 0.9, 0.79, (0.76, 0.82), (0.01, -0.02, 0.04), 0, 9, 4.0
    )
    network = Candidate(
        "finetune", "all, linear", 0.95, 0.91, (0.88, 0.94), (-0.11, -0.14, -0.08), 12, 9, 812.0
    )
    unscored = Candidate("truncated-probe", LONG, None, None, None, None, 0, 9, 3.0)
    command = "classify finetune 'my photos' --cache c.h5 -o " + "long/" * 40 + "b-finetune.st"
    better = BetterCandidate(
        "finetune", "all, linear", (0.14, 0.1, 0.18), 400, True, 812.0, command
    )
    profile = SimpleNamespace(accuracy_by_layer=dict.fromkeys(LAYERS))
    advice = SimpleNamespace(
        confident=False, size="small", similarity="similar", strategy="linear-probe"
    )
    advice.depth_profile = profile
    return SimpleNamespace(
        advice=advice,
        candidates=[saved, joined, network, unscored],
        chosen=saved,
        better=better,
        summary=SimpleNamespace(cache="c.h5"),
        seconds=900.0,
    )


@pytest.mark.parametrize("width", [80, 120])
def test_no_name_is_cut_and_lines_fit(result, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show_auto(result, "m.st")
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert f"  {result.better.command}" in lines
    others = [line for line in lines if result.better.command not in line]
    assert max(map(len, others)) <= width
    heading = next(i for i, line in enumerate(lines) if line.split()[:1] == ["strategy"])
    assert re.split(r"\s{2,}", lines[heading].strip()) == [
        *("strategy", "on", "val", "test", "saved minus this", "s"),
    ]
    first, last = lines[heading].index("on"), lines[heading].index("val") - 3  # right-aligned
    names = "".join(line[first:last].strip() for line in lines[heading:])
    assert names.count(LONG) == 2
    assert "all3joined" in names.replace(" ", "")
    assert "all,linear;12epochs" in names.replace(" ", "")
    text = " ".join(" ".join(lines).split())
    assert "(-0.140 to -0.080)" in text


def test_what_is_compared_is_said_and_a_better_one_with_its_command(result, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show_auto(result, "m.st")
    out = capsys.readouterr().out
    text = " ".join(out.split())
    assert "saved minus this: by how much what is saved has more of the test images right" in text
    assert (
        "finetune (all, linear) validates better than what is saved, by +0.140 (95 % interval "
        "+0.100 to +0.180, the same 400 images). It trained for 13:32 instead of 3 s. To save it "
        "too:" in text
    )
    result.better = None
    show_auto(result, "m.st")
    assert "validates better" not in capsys.readouterr().out
