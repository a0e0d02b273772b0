"""What is written with -o: never over anything that is not of its own kind, never through a link
at a name of ours, whole or not at all."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from .starting import Starter

HEADS = ("--heads", "ncm,ridge", "--layers", "each")
DOCUMENT = b"My thesis, the only copy.\n" * 40


def verbs(taught: Path) -> dict[str, tuple[str, tuple[object, ...]]]:
    """By name: the suffix of an output, and the command but for it."""
    images, cache, head = taught / "images", taught / "c.h5", taught / "h"
    seedling = ("--backbone", "seedling", "--device", "cpu")
    tune = ("--tune", "stage4", "--epochs", "1")
    return {
        "run": (".h5", ("featurize", "run", images, *seedling)),
        "export": (".npz", ("featurize", "export", cache)),
        "export parquet": (".parquet", ("featurize", "export", cache)),
        "fit": (".head", ("classify", "fit", cache, "--head", "ncm")),
        "predict": (".csv", ("classify", "predict", head, cache)),
        "report": (".html", ("classify", "report", cache, *HEADS)),
        "finetune": (".m", ("classify", "finetune", images, *seedling, *tune)),
        "auto": (".a", ("classify", "auto", images, *seedling, "--epochs", "1")),
    }


VERBS = tuple(verbs(Path()))
OWN = {"run": {"cache"}, "fit": {"head"}, "finetune": {"head"}, "auto": {"head"}}
VICTIMS = (
    "cache",
    "head",
    "table",
    "document",
    "picture",
    "archive",
    "page",
    "link",
)
QUICK = [
    *(("predict", kind) for kind in ("cache", "head", "table", "document", "link")),
    *(("export", kind) for kind in ("archive", "document")),
    *(("run", kind) for kind in ("head", "document")),
    *(("fit", kind) for kind in ("cache", "table")),
    ("report", "page"),
]


def victim(kind: str, taught: Path, path: Path) -> Path:
    """Put something at the place of an output; what must stay as it is."""
    elsewhere = path.parent / "elsewhere" / "thesis.txt"
    elsewhere.parent.mkdir(exist_ok=True)
    match kind:
        case "cache" | "head":
            shutil.copy(taught / {"cache": "c.h5", "head": "h"}[kind], path)
        case "table":
            path.write_text("path,label,note\na/000.png,a,mine\n")
        case "document":
            path.write_bytes(DOCUMENT)
        case "picture":
            shutil.copy(next((taught / "images").rglob("*.png")), path)
        case "archive":
            np.savez(path.with_suffix(".npz"), mine=np.arange(9))
            os.replace(path.with_suffix(".npz"), path)
        case "page":
            path.write_text("<!doctype html><title>my page</title>")
        case "link":
            elsewhere.write_bytes(DOCUMENT)
            path.symlink_to(elsewhere)
            return elsewhere
    return path


def attack(start: Starter, taught: Path, verb: str, kind: str, home: Path) -> None:
    suffix, words = verbs(taught)[verb]
    path = home / f"out{suffix}"
    stays = victim(kind, taught, path)
    before = stays.read_bytes()
    done = start(*words, "-o", path, hang=120)
    assert "Traceback" not in done.err, done.said
    assert "unexpected" not in done.err, done.said
    assert done.code == 2, done.said
    assert str(path.parent) in done.err, done.said
    assert stays.read_bytes() == before, "it was written over"
    assert not list(home.rglob("*.tmp"))


@pytest.mark.parametrize(("verb", "kind"), QUICK)
def test_what_is_not_its_own_stays(start: Starter, taught, verb, kind, tmp_path):
    attack(start, taught, verb, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VICTIMS)
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_that_is_not_its_own_is_replaced(start: Starter, taught, verb, kind, tmp_path):
    if kind not in OWN.get(verb, ()):
        attack(start, taught, verb, kind, tmp_path)


@pytest.mark.parametrize("which", ["head", "cache"])
def test_labels_are_not_written_over_what_they_come_from(start: Starter, taught, which, tmp_path):
    for name in ("h", "c.h5"):
        shutil.copy(taught / name, tmp_path / name)
    path = tmp_path / {"head": "h", "cache": "c.h5"}[which]
    before = path.read_bytes()
    done = start("classify", "predict", tmp_path / "h", tmp_path / "c.h5", "-o", path)
    assert done.code == 2, done.said
    assert path.read_bytes() == before


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_its_own_is_replaced(start: Starter, taught, verb, tmp_path):
    """The same command twice has to work."""
    suffix, words = verbs(taught)[verb]
    for _ in range(2):
        done = start(*words, "-o", tmp_path / f"out{suffix}")
        assert done.code == 0, done.said
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def special(start: Starter, taught: Path, verb: str, kind: str, home: Path) -> None:
    suffix, words = verbs(taught)[verb]
    path = home / f"out{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = home / "absent" / path.name
    done = start(*words, "-o", path, hang=20)
    assert done.code == 2, done.said
    assert "unexpected" not in done.err, done.said


@pytest.mark.parametrize("verb", ["predict", "export", "fit"])
def test_a_pipe_that_nobody_reads_is_not_waited_for(start: Starter, taught, verb, tmp_path):
    special(start, taught, verb, "pipe", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "folder", "no folder"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_file_at_all(start: Starter, taught, verb, kind, tmp_path):
    special(start, taught, verb, kind, tmp_path)


def plant(start: Starter, path: Path, target: Path) -> None:
    """Links to a document at every name that something temporary might have."""
    names = [f"{path.name}{end}" for end in (".tmp", ".part", ".part.tmp", ".part.old", ".lock")]
    names += [f"{path.name}.part.lock", f".{path.name}.tmp", f"{path.stem}.tmp"]
    now = start.start("featurize", "--version")
    now.wait()
    names += [f"{path.name}.{number}.tmp" for number in range(now.pid, now.pid + 60)]
    for name in names:
        (path.parent / name).symlink_to(target)


def through_links(start: Starter, taught: Path, verb: str, home: Path) -> None:
    suffix, words = verbs(taught)[verb]
    target = home / "elsewhere" / "thesis.txt"
    target.parent.mkdir()
    target.write_bytes(DOCUMENT)
    plant(start, home / f"out{suffix}", target)
    done = start(*words, "-o", home / f"out{suffix}", hang=120)
    assert done.code in (0, 2), done.said
    assert "Traceback" not in done.err, done.said
    assert target.read_bytes() == DOCUMENT, f"it was written through a link: {done.said}"
    assert [path.name for path in target.parent.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("verb", ["run", "export", "predict", "fit"])
def test_nothing_is_written_through_a_planted_link(start: Starter, taught, verb, tmp_path):
    through_links(start, taught, verb, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["export parquet", "report", "finetune", "auto"])
def test_nor_from_the_other_verbs(start: Starter, taught, verb, tmp_path):
    through_links(start, taught, verb, tmp_path)


def test_growing_a_cache_goes_through_no_link(start: Starter, taught, tmp_path):
    path, target = tmp_path / "out.h5", tmp_path / "elsewhere" / "thesis.txt"
    target.parent.mkdir()
    target.write_bytes(DOCUMENT)
    shutil.copy(taught / "c.h5", path)
    plant(start, path, target)
    words = ("run", taught / "images", "-o", path, "--layers", "stage1,stage2,stage4")
    done = start("featurize", *words)
    assert done.code in (0, 2), done.said
    assert "Traceback" not in done.err, done.said
    assert target.read_bytes() == DOCUMENT


def test_a_file_of_the_users_at_a_temporary_name_stays(start: Starter, taught, tmp_path):
    for verb in ("export", "predict", "fit"):
        suffix, words = verbs(taught)[verb]
        mine = tmp_path / f"out{suffix}.tmp"
        mine.write_bytes(DOCUMENT)
        done = start(*words, "-o", tmp_path / f"out{suffix}")
        assert done.code in (0, 2), done.said
        assert mine.read_bytes() == DOCUMENT, verb


def test_two_at_once_do_not_mix(start: Starter, taught, tmp_path):
    words = verbs(taught)["export"][1]
    runs = [start.start(*words, "-o", tmp_path / "out.npz") for _ in range(4)]
    codes = [run.wait().code for run in runs]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    with np.load(tmp_path / "out.npz") as found:
        assert len(found["path"]) == 60
        assert found["stage4"].shape[0] == 60
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(24))
def test_a_kill_leaves_the_old_or_the_new(start: Starter, taught, seed, number, tmp_path):
    verb = ("predict", "export", "fit")[number % 3]
    suffix, words = verbs(taught)[verb]
    path = tmp_path / f"out{suffix}"
    whole = start(*words, "-o", path)
    assert whole.code == 0, whole.said
    old = path.read_bytes()
    rng = np.random.default_rng([seed, number])
    run = start.start(*words, "-o", path)
    run.poll(rng.uniform(0, whole.seconds))
    run.send(signal.SIGKILL)
    run.wait(10)
    new = path.read_bytes()
    assert len(new) == len(old)
    if verb == "predict":
        assert new == old
    assert len(list(tmp_path.iterdir())) <= 2  # at most a draft is left beside it
