"""A cache of parts: the rows of a single file, each once, whatever comes and goes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from featurize import FeatureCache, run
from featurize.cache.lock import WriteLock
from featurize.cache.parts.index import read_index
from featurize.engines import eager
from featurize.errors import BackboneError, CallError, FingerprintMismatchError

KINDS = ["folder", "list", "shards", "tables"]


@pytest.fixture
def embed(toy, monkeypatch):
    """Run the toy network on a source, image by image: ``embed(source, output, ...)``.

    A batch of another size is summed in another order, so the last bits would differ.
    """
    monkeypatch.setattr(eager, "choose_batch_sizes", lambda *_: (1, 1))

    def embed(source, output, **options):
        return run(source, output, backbone=toy, **{"engine": "eager", "layers": "2"} | options)

    return embed


@pytest.fixture
def in_parts(embed, tmp_path):
    """The same, into parts of 20 rows."""

    def in_parts(source, **options):
        return embed(source, f"{tmp_path}/photos.parts/", **{"part_rows": 20} | options)

    return in_parts


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "photos.parts"


def is_like_one_file(embed, whole, source, folder, tmp_path, **options):
    single = tmp_path / "single.h5"
    single.unlink(missing_ok=True)
    embed(source, single, **options)
    return whole(folder).same_as(whole(single))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_a_single_file(
    kind, make_source, in_parts, embed, whole, folder, tmp_path
):
    source = make_source(kind)
    done = in_parts(source, layers="0:max,2")
    assert (done.rows, done.computed, done.reused, done.failed) == (60, 60, 0, 0)
    assert done.parts == {"total": 3, "completed": 3, "by_this_process": 3, "busy": 0}
    assert whole(folder).sizes == [20, 20, 20]
    assert is_like_one_file(embed, whole, source, folder, tmp_path, layers="0:max,2")
    assert read_index(folder).fingerprints == {
        info.name: info.fingerprint for info in whole(folder).parts[0].layers.values()
    }


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_rerun_computes_nothing_and_imports_no_torch(kind, make_source, tmp_path, folder):
    source = make_source(kind)
    run(source, folder, backbone="seedling", part_rows=20)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import sys, featurize\n"
        f"done = featurize.run({str(source)!r}, {str(folder)!r})\n"
        "assert (done.computed, done.reused) == (0, 60), done\n"
        "assert done.parts['by_this_process'] == 0, done\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["shards", "tables"])
def test_finished_containers_are_not_opened(kind, make_source, in_parts, monkeypatch):
    source = make_source(kind)
    in_parts(source)
    for path in source.iterdir():  # damaged behind its back: same size, same time
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert in_parts(source).reused == 60


def test_labels_lie_beside_each_part(make_source, in_parts, folder):
    done = in_parts(make_source("shards"))
    tables = sorted(folder.glob("*.labels.csv"))
    assert len(tables) == 3
    lines = [line for table in tables for line in table.read_text().splitlines()[1:]]
    assert lines[:2] == ["s-0000.tar/0000.png,0", "s-0000.tar/0001.png,1"]
    assert len(lines) == 60
    assert done.labels == str(folder / "part-*.h5.labels.csv")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_images_come_and_go_in_the_range_that_covers_them(
    kind, make_source, in_parts, embed, whole, folder, tmp_path, write
):
    source = make_source(kind)
    in_parts(source)
    files = [part.file for part in read_index(folder).parts]
    if kind == "folder":
        write.folder(source / "2", [100, 101])  # as 2/10/0100.png, in the second range
        (source / "0" / "0003.png").unlink()
    else:
        write.shard(source / "s-0025.tar", [100, 101])
        write.shard(source / "s-0000.tar", [*range(3), *range(4, 10)])
    done = in_parts(source)
    assert (done.rows, done.computed) == (61, 2)
    assert [part.file for part in read_index(folder).parts] == files
    assert whole(folder).sizes == [19, 22, 20]
    assert is_like_one_file(embed, whole, source, folder, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_images_beyond_fill_the_last_part_then_further_ones(
    kind, make_source, in_parts, embed, whole, folder, tmp_path, write
):
    source = make_source(kind, range(50))
    assert in_parts(source).parts["total"] == 3
    if kind == "folder":
        write.folder(source, range(50, 90))
    else:
        for start in range(50, 90, 10):
            write.shard(source / f"s-{start:04}.tar", range(start, start + 10))
    done = in_parts(source)
    assert (done.computed, done.reused) == (40, 50)
    assert whole(folder).sizes == [20, 20, 20, 20, 10]
    assert is_like_one_file(embed, whole, source, folder, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_part_without_images_goes_only_if_few_rows_or_pruned(
    kind, make_source, in_parts, embed, whole, folder, tmp_path
):
    source = make_source(kind)
    in_parts(source)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name in ("2", "3", "s-0020.tar", "s-0030.tar"):
        shutil.rmtree(source / name, ignore_errors=True)
        (source / name).unlink(missing_ok=True)
    with pytest.raises(CallError, match=r"20 of the 60 images in .*--prune"):
        in_parts(source)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    done = in_parts(source, prune=True)
    assert (done.rows, done.computed, done.parts["total"]) == (40, 0, 2)
    assert [part.file for part in read_index(folder).parts] == ["part-00000.h5", "part-00002.h5"]
    assert [path.name for path in folder.glob("part-00001*")] == ["part-00001.h5.lock"]
    assert is_like_one_file(embed, whole, source, folder, tmp_path)
    assert in_parts(source).reused == 40


@pytest.mark.long
def test_a_first_part_without_images_goes_too(make_source, in_parts, whole, folder):
    source = make_source("folder")
    in_parts(source, part_rows=5)
    shutil.rmtree(source / "0")
    assert in_parts(source, prune=True, part_rows=5).rows == 50
    assert read_index(folder).parts[0].first == ""
    assert whole(folder).sizes == [5] * 10


@pytest.mark.long
def test_rows_of_a_part_go_by_the_rule_of_the_whole(make_source, in_parts, whole, folder):
    """Three of ten rows of a part are many, and three of sixty few."""
    source = make_source("folder")
    in_parts(source, part_rows=10)
    for number in range(20, 23):
        (source / "2" / f"{number:04}.png").unlink()
    assert in_parts(source, part_rows=10).rows == 57
    for number in range(23, 30):
        (source / "2" / f"{number:04}.png").unlink()
    with pytest.raises(CallError, match="--prune"):
        in_parts(source, part_rows=10)


def test_a_deleted_part_is_made_again(make_source, in_parts, embed, whole, folder, tmp_path):
    source = make_source("shards")
    in_parts(source)
    (folder / "part-00001.h5").unlink()
    done = in_parts(source)
    assert (done.computed, done.reused) == (20, 40)
    assert is_like_one_file(embed, whole, source, folder, tmp_path)


def test_busy_parts_are_left_to_others(make_source, in_parts, folder):
    source = make_source("shards")
    in_parts(source)
    (folder / "part-00000.h5").unlink()
    with WriteLock(folder / "part-00000.h5"):
        done = in_parts(source)
    assert done.parts == {"total": 3, "completed": 2, "by_this_process": 0, "busy": 1}
    assert "1 part of 3 is in the hands of other processes" in done.verdict
    assert (done.rows, done.computed) == (40, 0)


def test_processes_of_one_machine_take_gpus_of_their_own(toy, monkeypatch):
    import torch

    from featurize.extraction.options import Options, resolve_options
    from featurize.extraction.setup import ExtractionSetup

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = [("auto", 0), ("auto", 1), ("auto", 2), ("auto", None), ("cuda:1", 0), ("cpu", 1)]
    found = []
    for device, local_rank in devices:
        options = resolve_options(Options(layers="2", device=device), None, "toy")
        found.append(ExtractionSetup(options, toy, None, local_rank=local_rank).device)
    assert found == ["cuda:0", "cuda:1", "cuda:0", "cuda", "cuda:1", "cpu"]


@pytest.mark.long
def test_layers_are_added_to_every_part(make_source, in_parts, embed, whole, folder, tmp_path):
    source = make_source("folder")
    in_parts(source, layers="2")
    # As after a kill: one part is ahead, and a run that asks for nothing brings the others on.
    held = [WriteLock(folder / f"part-0000{k}.h5") for k in (1, 2)]
    for lock in held:
        lock.__enter__()
    done = in_parts(source, layers="0:max")
    for lock in held:
        lock.__exit__()
    assert done.parts == {"total": 3, "completed": 1, "by_this_process": 1, "busy": 2}
    assert "2 parts of 3 are in the hands of other processes" in done.verdict
    in_parts(source, layers=None)
    assert is_like_one_file(embed, whole, source, folder, tmp_path, layers="2,0:max")


@pytest.mark.long
def test_globs_stay_until_others_are_given(make_source, in_parts, whole, folder):
    source = make_source("folder")
    in_parts(source)
    assert in_parts(source, exclude=["**/*1.png"]).rows == 54
    assert in_parts(source).rows == 54  # also of parts that had no such image
    assert in_parts(source, exclude=["3/**"], prune=True).rows == 50
    assert in_parts(source).rows == 50


def test_a_split_that_some_parts_lack(make_source, in_parts, embed, whole, folder, tmp_path, write):
    """Tables of another split, which only their columns tell, are no part."""
    import pyarrow.parquet as pq

    source = make_source("tables")
    for k, path in enumerate(sorted(source.iterdir())):
        table = pq.read_table(path)
        split = ["train" if k in (0, 1, 4, 5) else "test"] * len(table)
        pq.write_table(table.append_column("split", [split]), path)
        os.utime(path, ns=(10**18 + k, 10**18 + k))
    done = in_parts(source, split="train")
    assert (done.rows, done.parts["total"]) == (40, 2)
    assert is_like_one_file(embed, whole, source, folder, tmp_path, split="train")
    assert in_parts(source).reused == 40


def test_other_options_are_refused(make_source, in_parts, folder):
    source = make_source("folder")
    in_parts(source)
    with pytest.raises(FingerprintMismatchError, match="dtype"):
        in_parts(source, dtype="float16")
    shutil.rmtree(folder)
    in_parts(source)
    for part in folder.glob("*.h5"):
        part.unlink()
    with pytest.raises(FingerprintMismatchError, match=r"part-00000.h5 .* differ in the layer 2"):
        in_parts(source, dtype="float16")


def test_nothing_is_left_of_a_mistyped_call(make_source, tmp_path):
    source, folder = make_source("shards"), tmp_path / "new.parts"
    with pytest.raises(BackboneError):
        run(source, f"{folder}/", backbone="sedling")
    with pytest.raises(CallError):
        run(source / "none", f"{folder}/", backbone="seedling")
    with pytest.raises(CallError, match="left by"):
        run(source, f"{folder}/", backbone="seedling", include=["none*"])
    assert not folder.exists()


def test_which_outputs_are_parts(make_source, embed, tmp_path):
    source = make_source("folder", range(3))
    (tmp_path / "empty").mkdir()
    assert embed(source, f"{tmp_path}/empty/").parts["total"] == 1
    (tmp_path / "void").mkdir()
    assert embed(source, tmp_path / "new", part_rows=2).parts["total"] == 2
    assert embed(source, tmp_path / "new").parts["total"] == 2
    assert embed(source, tmp_path / "c.h5").parts is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for output, options, problem in (
        (tmp_path / "c.h5", {"part_rows": 2}, "--part-rows is for a cache of parts"),
        (f"{tmp_path}/c.h5/", {}, "is a file, and no folder of parts"),
        (tmp_path / "other", {}, "is a folder; give the cache a file name"),
        (f"{tmp_path}/other/", {}, "is a folder; give the cache a file name"),
        (tmp_path / "void", {}, "A cache of parts has a slash"),
        (f"{tmp_path}/none/new/", {}, "there is no folder"),
    ):
        with pytest.raises(CallError, match=problem):
            embed(source, output, **options)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_dry_run_estimates_the_whole(make_source, in_parts, folder):
    source = make_source("shards")
    estimate = in_parts(source, dry_run=True)
    assert (estimate.rows, estimate.to_compute) == (60, 60)
    assert estimate.seconds > 0
    assert not folder.exists()
    in_parts(source)
    (folder / "part-00001.h5").unlink()
    estimate = in_parts(source, dry_run=True)
    assert (estimate.rows, estimate.to_compute) == (60, 20)
    (folder / "part-00000.h5").unlink()
    assert in_parts(source, dry_run=True).to_compute == 40


def test_failures_are_counted_over_all_parts(make_source, command, tmp_path, folder):
    source = make_source("folder")
    for name in ("0/0000.png", "5/0050.png"):
        (source / name).write_bytes(b"no image")
    line = ["run", source, "-o", f"{folder}/", "--backbone", "seedling", "--part-rows", 20]
    done = command("featurize", *line, "--json", "--max-errors", 1)
    assert done.returncode == 3
    result = json.loads(done.stdout)
    assert (result["rows"], result["failed"], len(result["failures"])) == (60, 2, 2)
    assert command("featurize", *line, "--max-errors", 2).returncode == 0


@pytest.mark.long
def test_the_plan_is_said_once(make_source, embed, tmp_path):
    said = []
    embed(make_source("shards"), f"{tmp_path}/p/", part_rows=10, say=said.append)
    assert f"{tmp_path}/shards: tar shards, 6 files: 6 parts of about 10 images in " in said[1]
    assert len(said) <= 5, said


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_progress_is_of_the_whole(kind, make_source, in_parts):
    reports = []
    in_parts(make_source(kind), report=lambda stats: reports.append((stats.done, stats.total)))
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {60}
    assert reports[-1] == (60, 60)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_finished_parts_in_a_folder_that_cannot_be_written(make_source, in_parts, folder):
    source = make_source("folder")
    in_parts(source)
    for path in folder.glob("*.lock"):
        path.unlink()
    folder.chmod(0o555)
    try:
        assert in_parts(source).reused == 60
    finally:
        folder.chmod(0o755)


def test_damaged_parts_name_themselves(make_source, in_parts, folder):
    source = make_source("folder")
    in_parts(source)
    (folder / "part-00002.h5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"part-00002\.h5"):
        in_parts(source)


@pytest.mark.long
def test_rehash_and_retry_work_over_the_whole(make_source, in_parts, folder):
    source = make_source("folder")
    in_parts(source)
    part = FeatureCache(folder / "part-00001.h5")
    assert np.array_equal(part.status, np.ones(20))
    assert in_parts(source, rehash=True).computed == 0
    path = source / "3" / "0035.png"
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert in_parts(source).failed == 0
    assert in_parts(source, rehash=True).failed == 1
