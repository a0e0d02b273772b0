"""Names that are orders to a terminal: from no verb does one of them reach it raw.

The commands run with a real terminal (a pty); what would arrive there is searched for the orders
that the names hold. What the commands themselves do to a terminal, colours and progress, is theirs.
"""

import os
import pty
import shutil
import threading
from pathlib import Path

import pytest

from .starting import Starter
from .world import classes

TITLE = "\x1b]0;owned\x07"
NAMES = (
    f"bad{TITLE}\x1b[31m\n  fake.png: fine.png",
    "cr\rforged\x1b[2K\x1b[1A.png",
    "c1\x9b31m\x85line.png",
    "bidi\u202egnp.\u2066x\u2028y.png",
    "del\x7f\x08\x08\x08.png",
)
# Raw, they would do something: none of these bytes may come out of a name.
ORDERS = (
    b"\x1b]",
    b"\x07",
    b"\x1b[31m\r\n  fake",
    b"\x1b[31m\n  fake",
    b"\n  fake.png: fine",
    b"\rforged",
    b"\x1b[2K\x1b[1A.png",
    b"\xc2\x9b",
    b"\xc2\x85",
    "\u202e".encode(),
    "\u2066".encode(),
    "\u2028".encode(),
    b"\x7f",
    b"\x08",
)
TABLE = f"t{NAMES[1]}.csv"
BACKBONE = f"net{TITLE}\x1b[31m\n\rforged"
MAKER = """
import sys
import torch
from featurize import Backbone, run
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(),
                             torch.nn.Conv2d(8, 8, 3, stride=2))
recipe = {"resize": 16, "crop": 16, "interpolation": "bilinear", "decode": "exact"}
recipe |= {"mean": [0.5] * 3, "std": [0.25] * 3}
run(sys.argv[1], sys.argv[2], backbone=Backbone(module, name=sys.argv[3], preprocess=recipe),
    layers="0,2", device="cpu")
"""


def on_terminal(start: Starter, *words: object, folder: Path | None = None) -> tuple[int, bytes]:
    """Run a command on a terminal of its own: its exit code, and what arrived there."""
    outside, inside = pty.openpty()
    arrived = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(outside, 1 << 16)
            except OSError:  # nobody holds the other end any more
                return
            if not data:
                return
            arrived.extend(data)

    environment = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    device = os.ttyname(inside)
    name, *rest = words
    run = start.start(str(name), *rest, terminal=device, environment=environment, folder=folder)
    reader = threading.Thread(target=read)
    reader.start()
    code = run.poll(90)
    os.close(inside)
    reader.join(5)
    os.close(outside)
    assert code is not None, f"hangs: {bytes(arrived)!r}"
    return code, bytes(arrived)


def check(start: Starter, *words: object, codes: tuple[int, ...] = (0, 2, 3), **options) -> bytes:
    code, arrived = on_terminal(start, *words, **options)
    assert code in codes, (code, arrived)
    assert b"Traceback" not in arrived, arrived
    for order in ORDERS:
        assert order not in arrived, f"{order!r} reaches the terminal: {arrived!r}"
    return arrived


@pytest.fixture(scope="module")
def home(start: Starter, tmp_path_factory):
    """Images with such names in folders with such names; caches, a head and a table of them."""
    home = tmp_path_factory.mktemp("terminal")
    images = classes(home / "images", each=10)
    for k, old in enumerate(sorted(images.iterdir())):
        for name, path in zip(NAMES, sorted(old.iterdir()), strict=False):
            path.rename(path.with_name(name))
        old.rename(images / f"{k}{NAMES[k].removesuffix('.png')}")
    for folder in sorted(images.iterdir()):
        (folder / f"broken{NAMES[0]}").write_bytes(b"no image")
    words = ("run", images, "-o", home / "c.h5", "--backbone", "seedling", "--device", "cpu")
    done = start("featurize", *words, "--layers", "stage2,stage4")
    assert done.code == 0, done.said
    done = start("classify", "fit", home / "c.h5", "-o", home / "h", "--head", "ncm")
    assert done.code == 0, done.said
    code = home / "make.py"
    code.write_text(MAKER)
    done = start(str(code), images, home / "named.h5", BACKBONE)
    assert done.code == 0, done.said
    done = start("classify", "fit", home / "named.h5", "-o", home / "named.head", "--head", "ncm")
    assert done.code == 0, done.said
    path = next(iter(sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))))
    table = home / TABLE
    table.write_text(f'path,label\n"{path}",a\n"no{NAMES[0]}",b\n')
    return home


FEATURIZE = {
    "run": lambda h: ("run", h / "images", "-o", h / "new.h5", "--backbone", "seedling"),
    "rerun": lambda h: ("run", h / "images", "-o", h / "c.h5", "--retry-failed"),
    "run with another network": lambda h: ("run", h / "images", "-o", h / "named.h5"),
    "backbone": lambda h: ("run", h / "images", "-o", h / "x.h5", "--backbone", BACKBONE),
    "layers of it": lambda h: ("run", h / "images", "-o", h / "c.h5", "--layers", NAMES[0]),
    "dry run": lambda h: ("run", h / "images", "-o", h / "x.h5", "--dry-run"),
    "info": lambda h: ("info", h / "c.h5"),
    "info of a name": lambda h: ("info", h / "named.h5"),
    "verify": lambda h: ("verify", h / "c.h5", h / "images"),
    "verify without": lambda h: ("verify", h / "c.h5", h),
    "verify of a name": lambda h: ("verify", h / "named.h5", h / "images"),
    "export": lambda h: ("export", h / "c.h5", "-o", h / f"{NAMES[0]}.npz"),
    "export layers": lambda h: ("export", h / "c.h5", "-o", h / "x.npz", "--layers", NAMES[0]),
    "layers": lambda h: ("layers", BACKBONE),
    "no file": lambda h: ("info", h / NAMES[0]),
}
CLASSIFY = {
    "fit": lambda h: ("fit", h / "c.h5", "-o", h / "h2", "--head", "ncm"),
    "fit by table": lambda h: ("fit", h / "c.h5", "-o", h / "h3", "--labels", h / TABLE),
    "fit layer": lambda h: ("fit", h / "c.h5", "-o", h / "h4", "--layer", NAMES[0]),
    "compare": lambda h: ("compare", h / "c.h5", "--heads", "ncm,ridge", "--layers", "each"),
    "predict": lambda h: ("predict", h / "h", h / "c.h5"),
    "predict images": lambda h: ("predict", h / "h", h / "images"),
    "predict by a name": lambda h: ("predict", h / "named.head", h / "images"),
    "predict of another": lambda h: ("predict", h / "h", h / "named.h5"),
    "evaluate": lambda h: ("evaluate", h / "h", h / "c.h5"),
    "evaluate of another": lambda h: ("evaluate", h / "named.head", h / "c.h5"),
    "advise": lambda h: ("advise", h / "c.h5"),
    "advise of a name": lambda h: ("advise", h / "named.h5"),
    "report": lambda h: (
        "report", h / "c.h5", "-o", h / "r.html", "--heads", "ncm,ridge", "--layers", "each"
    ),
    "finetune": lambda h: (
        "finetune", h / "images", "-o", h / "m", "--backbone", "seedling", "--epochs", "1",
        "--tune", "stage4", "--device", "cpu",
    ),
    "auto": lambda h: (
        "auto", h / "images", "-o", h / "m2", "--backbone", "seedling", "--epochs", "1",
        "--device", "cpu",
    ),
    "no head": lambda h: ("predict", h / NAMES[0], h / "c.h5"),
}  # fmt: skip
QUICK = {"run", "info", "info of a name", "predict", "predict images", "fit"}


def parameters(verbs: dict[str, object], quick: set[str]) -> list[object]:
    marks = {name: () if name in quick else pytest.mark.slow for name in verbs}
    return [pytest.param(name, marks=marks[name], id=name) for name in verbs]


@pytest.mark.parametrize("name", parameters(FEATURIZE, QUICK))
def test_nothing_raw_from_featurize(start: Starter, home, name):
    check(start, "featurize", *FEATURIZE[name](home))


@pytest.mark.parametrize("name", parameters(CLASSIFY, QUICK))
def test_nothing_raw_from_classify(start: Starter, home, name):
    check(start, "classify", *CLASSIFY[name](home))


def test_a_pipe_gets_the_names_as_they_are(start: Starter, home):
    """Escaped is what a person sees; what a program reads is true to the byte."""
    import csv
    import io

    done = start("classify", "predict", home / "h", home / "c.h5")
    told = {row["path"] for row in csv.DictReader(io.StringIO(done.out, newline=""))}
    images = home / "images"
    real = {path.relative_to(images).as_posix() for path in images.rglob("*.png")}
    assert {name for name in real if "broken" not in name} == told


def test_the_terminal_is_one(start: Starter, tmp_path):
    """The attack itself: a command that writes an order is seen to."""
    code = tmp_path / "code.py"
    code.write_text("import sys; print(sys.stdout.isatty()); sys.stderr.write('\\x1b]0;x\\x07')")
    status, arrived = on_terminal(start, str(code))
    assert status == 0, arrived
    assert b"True" in arrived
    assert b"\x1b]0;x\x07" in arrived
    assert shutil.which("sh")
