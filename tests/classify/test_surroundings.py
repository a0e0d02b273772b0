"""Where a command is run decides nothing: whose files lie there, which locale, which terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("joblib", "multiprocessing", "struct", "numpy", "sklearn", "classify", "featurize")
NAMES += ("sitecustomize", "usercustomize", "torch", "scipy", "pickle", "signal", "threading")


@pytest.fixture
def hostile(tmp_path):
    """A folder of modules that leave a mark when they are imported."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in NAMES:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + chr(10))\n"
        (folder / f"{name}.py").write_text(code)
    return folder


@pytest.mark.slow  # the attack's own share of it is quick
@pytest.mark.parametrize(
    "line",
    [
        ("compare", "{cache}", "--labels", "{table}", "--heads", "ridge,ncm"),
        ("report", "{cache}", "--labels", "{table}", "--heads", "ridge", "-o", "{out}.html"),
        ("fit", "{cache}", "--labels", "{table}", "--head", "ncm", "-o", "{out}"),
        ("advise", "{pictured}"),
    ],
    ids=lambda line: line[0],
)
def test_nothing_of_the_working_folder_is_run(
    line, hostile, cache, table, pictured, command, make_cache, digits, tmp_path
):
    mine = make_cache(tmp_path / "c.h5", {"fine": digits[0], "coarse": digits[0][:, :16].copy()})
    names = {"cache": mine.path, "table": table, "out": tmp_path / "out"}
    names["pictured"] = tmp_path / "pictured.h5"
    names["pictured"].write_bytes(pictured.cache.read_bytes())
    done = command("classify", *(word.format(**names) for word in line), cwd=hostile)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.long
def test_nor_of_a_programs_that_compares(hostile, table, make_cache, digits, tmp_path):
    mine = make_cache(tmp_path / "c.h5", {"fine": digits[0]})
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom classify import compare\n"
        "compare(sys.argv[1], sys.argv[2], 'ridge,ncm,softmax', jobs=2)\n"
    )
    done = subprocess.run(
        [sys.executable, program, mine.path, table], cwd=hostile, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.slow
def test_nor_of_a_compiler(hostile, command, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    line = (tmp_path / "images", "-o", tmp_path / "c.h5", "--backbone", "seedling")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "home")}
    done = command(
        "featurize", "run", *line, "--engine", "compile", cwd=hostile, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.parametrize("name", ["featurize", "classify"])
def test_a_module_run_as_a_command_leaves_the_folder_out(name, hostile, tmp_path):
    (hostile / f"{name}.py").unlink()  # which would be run in its place
    for known in ("signal", "threading", "pickle", "struct"):
        (hostile / f"{known}.py").unlink()  # which Python itself may import before us
    done = subprocess.run(
        [sys.executable, "-m", name, "--version"], cwd=hostile, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


@pytest.mark.long
def test_no_character_ends_a_command(cache, make_table, digits, command, tmp_path):
    rows = [(path, f"größe{d % 2}") for path, d in zip(cache.paths, digits[1], strict=True)]
    table = tmp_path / "é–\u4e2d.csv"
    make_table(table, "path,label", rows)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    plain |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    options = ("--labels", table, "--head", "ncm", "-o", tmp_path / "h")
    assert command("classify", "fit", cache.path, *options).returncode == 0
    for line in (
        ("compare", cache.path, "--labels", table, "--heads", "ncm"),
        ("fit", cache.path, *options),
        ("evaluate", tmp_path / "h", cache.path, "--labels", table),
    ):
        done = command("classify", *line, env=plain)
        assert done.returncode in (0, 2), done.stderr
        assert "UnicodeEncodeError" not in done.stderr
    compared = command(
        "classify", "compare", cache.path, "--labels", table, "--heads", "ncm", env=plain
    )
    assert compared.returncode == 0, compared.stderr
    labelled = subprocess.run(
        [Path(sys.executable).with_name("classify"), "predict", tmp_path / "h", cache.path],
        env=plain,
        capture_output=True,
    )
    assert labelled.returncode == 0, labelled.stderr
    assert "größe0" in labelled.stdout.decode()  # a table on a pipe is UTF-8, as in a file


EVIL = "bad\x1b]0;owned\x07\x1b[8m\r\nFORGED\u202e\x9b31m"


@pytest.fixture
def strange(make_cache, digits, tmp_path) -> dict[str, Path]:
    """A cache and a table in which every name gives orders to a terminal."""
    X, y = digits[0][:120], digits[1][:120] % 2
    paths = [f"{EVIL}{y[i]}/{i:04}{EVIL}.png" for i in range(120)]
    order = np.argsort(paths)
    layers = {"fine": X[order], f"coarse{EVIL}": X[order, :16].copy()}
    made = make_cache(
        tmp_path / "c.h5", layers, [paths[i] for i in order], failed=(3,), backbone=EVIL
    )
    return {"cache": made.path, "head": tmp_path / "h", "table": tmp_path / f"t{EVIL}.csv"}


def on_a_terminal(*line: object) -> tuple[int, str]:
    """Run a command on a terminal of its own, and return what it would have got."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("classify")), *map(str, line)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        found += part
    os.close(ours)
    return process.wait(timeout=60), found.decode()


@pytest.mark.slow  # the attack's own share of it is quick
def test_nothing_raw_reaches_a_terminal(strange, make_table):
    cache, head = strange["cache"], strange["head"]
    code, _ = on_a_terminal("fit", cache, "--head", "ncm", "-o", head)
    assert code == 0
    strange["table"].write_text(f'path,label\n"{EVIL}",a\n')
    for line, expected in (
        (("fit", cache, "-o", head), 0),
        (("fit", cache, "-o", head, "--layer", "fine"), 0),
        (("compare", cache, "--heads", "ncm,ridge"), 0),
        (("evaluate", head, cache), 0),
        (("predict", head, cache), 3),
        (("predict", head, cache, "--top", "2"), 3),
        (("predict", head, cache, "-o", head.with_name(f"{EVIL}.csv")), 3),
        (("advise", cache), 0),
        (("compare", cache, "--labels", strange["table"]), 2),
        (("compare", cache, "--labels", strange["table"], "--debug"), 2),
        (("fit", cache, "--layer", EVIL, "-o", head), 2),
        (("report", cache, "-o", head), 2),
    ):
        code, out = on_a_terminal(*line)
        assert code == expected, out
        for raw in ("\x1b]", "\x07", "\x1b[8m", "\u202e", "\x9b"):
            assert raw not in out, (line, out)
        forged = [text for text in out.splitlines() if text.strip().startswith("FORGED")]
        assert not forged or "--debug" in line, line  # a traceback has lines of its own


@pytest.mark.slow
def test_names_are_true_in_files_and_on_pipes(strange, command, tmp_path):
    cache, head = strange["cache"], strange["head"]
    assert command("classify", "fit", cache, "--head", "ncm", "-o", head).returncode == 0
    piped = command("classify", "predict", head, cache)
    command("classify", "predict", head, cache, "-o", tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        assert EVIL in file.read()
    assert "\x1b]0;owned\x07" in piped.stdout
