"""Folder layouts as data sets have them: read as they are meant, or refused with the way out."""

import re

import pytest

from classify.data.tasks import make_task
from classify.errors import CallError, LabelError
from classify.labels.table import labels_from_folders, read_labels

TWO = ("cat", "dog")


def tree(*patterns: str) -> list[str]:
    """Two images in each folder; ``{}`` stands for each of two classes."""
    folders = [pattern.format(name) for pattern in patterns for name in TWO]
    return [f"{folder}/{i}.jpg" for folder in dict.fromkeys(folders) for i in range(2)]


@pytest.mark.parametrize(
    ("patterns", "label", "split", "parts"),
    [
        (["Training/{}", "Testing/{}"], 2, 1, "4 train (Training), 4 test (Testing)"),
        (["Train/{}", "Test/{}"], 2, 1, "4 train (Train), 4 test (Test)"),
        (["TRAIN/{}", "VAL/{}", "TEST/{}"], 2, 1, "4 train (TRAIN), 4 val (VAL), 4 test (TEST)"),
        (["training_set/{}", "test_set/{}"], 2, 1, "4 train (training_set), 4 test (test_set)"),
        (["seg_train/{}", "seg_test/{}"], 2, 1, "4 train (seg_train), 4 test (seg_test)"),
        (["train/{}", "dev/{}"], 2, 1, "4 train, 4 val (dev)"),
        (["train/{}", "eval/{}"], 2, 1, "4 train, 4 test (eval)"),
        (["train/{}", "hold-out/{}"], 2, 1, "4 train, 4 test (hold-out)"),
        (["train/{}", "valid/{}", "test/{}"], 2, 1, "4 train, 4 val (valid), 4 test"),
        (["train2017/{}", "val2017/{}"], 2, 1, "4 train (train2017), 4 val (val2017)"),
        (["TrainImages/{}", "TestImages/{}"], 2, 1, "4 train (TrainImages), 4 test (TestImages)"),
        (["trainset/{}", "testset/{}"], 2, 1, "4 train (trainset), 4 test (testset)"),
        (["Train Set/{}", "validation/{}"], 2, 1, "4 train (Train Set), 4 val (validation)"),
        (["train/{}"], 2, 1, "4 train"),
        (["train/{}/deep", "test/{}"], 2, 1, "4 train, 4 test"),
        # below folders that lie alone
        (["data/train/{}", "data/test/{}"], 3, 2, "4 train, 4 test"),
        (["chest_xray/train/{}", "chest_xray/val/{}"], 3, 2, "4 train, 4 val"),
        (
            ["dataset/training_set/{}", "dataset/test_set/{}"],
            3,
            2,
            "4 train (training_set), 4 test",
        ),
        (["a/b/Training/{}", "a/b/Test/{}"], 4, 3, "4 train (Training), 4 test (Test)"),
        # each part of the split holding one folder more
        (["seg_train/seg_train/{}", "seg_test/seg_test/{}"], 3, 1, "4 train (seg_train), 4 test"),
        (["train/images/{}", "test/images/{}"], 3, 1, "4 train, 4 test"),
        # no split
        (["{}"], 1, None, None),
        (["{}/images"], 1, None, None),
        (["2750/{}"], 2, None, None),
        (["flowers/flowers/{}"], 3, None, None),
        (["test/{}"], 2, None, None),
        (["bullet_train", "steam_train"], 1, None, None),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_layouts_that_can_be_read_in_one_way(patterns, label, split, parts):
    paths = tree(*patterns)
    found = labels_from_folders(paths)
    assert found.paths == paths
    assert found.labels == [path.split("/")[label - 1] for path in paths]
    words = f"labels: 2 classes from folder level {label}"
    if split is None:
        assert found.splits is None
        assert found.notice == words
    else:
        assert found.notice.startswith(f"{words}; split from level {split}: {parts}")
        named = [path.split("/")[split - 1].lower().replace("-", "") for path in paths]
        kinds = {"tr": "train", "va": "val", "de": "val", "te": "test", "ev": "test", "ho": "test"}
        kinds |= {"seg_tr": "train", "seg_te": "test"}
        length = 6 if patterns[0].startswith("seg") else 2
        assert found.splits == [kinds[name[:length]] for name in named]


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        (["train/{}", "test/{}", "cats/{}"], "level 1 holds names of splits beside others"),
        (["train", "test", "cats"], "level 1 holds names of splits beside others"),
        (["train/{}", "images to predict"], "level 1 holds names of splits beside others"),
        (["seg_train/seg_train/{}", "seg_test/seg_test/{}", "seg_pred/seg_pred"], "beside others"),
        (["Training/{}", "PublicTest/{}", "PrivateTest/{}"], "level 1 holds names of splits,"),
        (["val/{}", "test/{}"], "level 1 holds names of splits,"),
        (["train station", "test tube"], "level 1 holds names of splits,"),
        (["{}/train", "{}/test"], "level 2, inside the classes, holds a split"),
        (
            ["fruit/red/Train", "nut/{}/Train", "nut/{}/Test"],
            "level 3, inside the classes, holds a",
        ),
        (["{}/left", "{}/right"], "every folder of level 1 has the same ones inside, in level 2"),
        (["color/{}", "grayscale/{}", "segmented/{}"], "every folder of level 1 has the same ones"),
        (["amazon/images/{}", "dslr/images/{}"], "has the same ones inside, in level 3"),
        (["fold1/{}", "fold2/{}"], "every folder of level 1 has the same ones inside"),
        (["train/{}/images", "val/images"], "'val' holds one folder, 'images', which is no class"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_layouts_that_can_be_read_in_two_ways_are_refused_with_the_way_out(patterns, why):
    with pytest.raises(LabelError) as caught:
        labels_from_folders(tree(*patterns))
    assert why in str(caught.value)
    assert "add `--labels-level " in str(caught.value)
    assert "--labels T.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (
            ["a/cat/1.jpg", "a/dog/1.jpg", "b/cat/1.jpg", "b/dog/1.jpg"],
            "`--labels-level 2` for the labels 'cat', 'dog'",
        ),
        (
            ["train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg"],
            "`--labels-level 2` for the labels 'cat', 'dog' without such images or "
            "`--labels-level 1` for the labels 'test', 'train'",
        ),
        (
            ["1.jpg", "cat/1.jpg", "dog/2.jpg"],
            "add `--labels-level 1` for the labels 'cat', 'dog' without such images; or",
        ),
        (["1.jpg", "2.jpg"], "or sort the images into folders, one for each label"),
        (["train/1.jpg", "train/2.jpg"], "or sort the images into folders, one for each label"),
    ],
)
def test_what_is_refused_names_the_option_that_goes_on(paths, told):
    """And the labels that it would take: adding what is named goes on."""
    with pytest.raises(LabelError) as caught:
        labels_from_folders(paths)
    message = str(caught.value)
    assert told in message
    assert "give a table with --labels T.csv" in message
    for level in re.findall("--labels-level ([0-9])", message):
        named = message.partition(f"--labels-level {level}` for the labels ")[2]
        taken = sorted(set(labels_from_folders(paths, int(level)).labels))
        assert named.startswith(", ".join(map(repr, taken)))


def test_folders_of_classes_that_hold_others_are_said():
    """Taken are the topmost; what those inside would give is not hidden."""
    found = labels_from_folders(["pets/cat/1.jpg", "pets/dog/1.jpg", "farm/cow/1.jpg"])
    assert set(found.labels) == {"pets", "farm"}
    assert "would give 3 classes ('cat', 'cow', 'dog'): add `--labels-level 2`" in found.notice


@pytest.mark.parametrize(
    ("patterns", "level", "told"),
    [
        (["train/{}", "test/{}"], 1, "labels: 2 classes from folder level 1"),
        (
            ["{}/train", "{}/test"],
            1,
            "labels: 2 classes from folder level 1; split from level 2: 4 train, 4 test",
        ),
        (
            ["Training/{}", "PublicTest/{}", "PrivateTest/{}"],
            2,
            "labels: 2 classes from folder level 2; split from level 1: 4 train (Training), "
            "8 test (PrivateTest, PublicTest)",
        ),
        (
            ["seg_train/seg_train/{}", "seg_test/seg_test/{}", "seg_pred/seg_pred"],
            3,
            "labels: 2 classes from folder level 3; split from level 1: 4 train (seg_train), "
            "4 test (seg_test); 2 images less deep, and without a label",
        ),
        (["color/{}", "grayscale/{}"], 2, "labels: 2 classes from folder level 2"),
        (
            ["train/{}", "test/{}", "cats/{}"],
            2,
            "labels: 2 classes from folder level 2; no split: beside parts of one, level 1 holds "
            "others",
        ),
    ],
)
def test_a_level_that_is_given_settles_it(patterns, level, told):
    paths = tree(*patterns)
    found = labels_from_folders(paths, level)
    assert found.notice == told
    deep = [path for path in paths if path.count("/") >= level]
    assert found.paths == deep
    assert found.labels == [path.split("/")[level - 1] for path in deep]
    assert (found.splits is None) == ("; split" not in told)
    assert found.splits is None or len(found.splits) == len(deep)


def test_a_level_that_no_image_has_or_that_is_none_is_refused():
    with pytest.raises(
        LabelError, match=r"no image lies in 3 folders.*`--labels-level 2` for the labels 'cat'"
    ):
        labels_from_folders(tree("train/{}", "test/{}"), 3)
    with pytest.raises(CallError, match="1 for the topmost folder, not 0"):
        labels_from_folders(tree("{}"), 0)


def test_a_class_that_is_a_vehicle_stays_a_class():
    paths = [f"{name}/{i}.jpg" for name in ("bus", "car", "train") for i in range(2)]
    found = labels_from_folders(paths)
    assert set(found.labels) == {"bus", "car", "train"}
    assert found.splits is None


def test_a_table_is_split_by_folders_below_a_lone_one_and_within_classes(tmp_path):
    for patterns in (["d/Train/{}", "d/Test/{}"], ["{}/train", "{}/test"]):
        rows = "".join(f"{path},{i % 2}\n" for i, path in enumerate(tree(*patterns)))
        (tmp_path / "t.csv").write_text("path,label\n" + rows)
        found = read_labels(tmp_path / "t.csv")
        assert sorted(found.splits) == ["test"] * 4 + ["train"] * 4
        assert found.notice.startswith("split from folder level 2: 4 train")


def test_folders_that_look_the_same_and_are_not_are_refused():
    paths = ["train/caf\u00e9/1.jpg", "train/tea/1.jpg", "test/cafe\u0301/1.jpg", "test/tea/1.jpg"]
    with pytest.raises(LabelError, match=r"'caf\\xe9' and 'cafe\\u0301' look the same"):
        labels_from_folders(paths)


@pytest.fixture
def scenes(make_cache, tmp_path):
    """A cache as the Intel scenes are unpacked, with the pictures that have no label."""
    import numpy as np

    train = [f"seg_train/seg_train/{c}/{i:02}.jpg" for c in TWO for i in range(12)]
    test = [f"seg_test/seg_test/{c}/{i:02}.jpg" for c in TWO for i in range(4)]
    paths = sorted([*train, *test, "seg_pred/seg_pred/1.jpg"])
    X = np.random.default_rng(0).normal(size=(len(paths), 4)).astype(np.float32)
    X[:, 0] += [4 * ("dog" in path) for path in paths]
    Y = X[:, :3].copy()
    return make_cache(tmp_path / "scenes.h5", {"early": Y, "late": X}, paths)


@pytest.mark.parametrize(
    "verb",
    [
        "fit",
        *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("compare", "advise", "report")),
    ],
)
def test_every_verb_refuses_what_is_unclear_and_says_what_it_took(verb, scenes, run_cli, tmp_path):
    out = {"fit": ("-o", tmp_path / "h"), "report": ("-o", tmp_path / "r.html")}.get(verb, ())
    refused = run_cli(verb, scenes.path, *out)
    assert refused.returncode == 2
    assert "level 1 holds names of splits beside others" in refused.stderr
    assert "add `--labels-level 3` for the labels 'cat', 'dog' or" in refused.stderr
    done = run_cli(verb, scenes.path, "--labels-level", 3, *out)
    told = "labels: 2 classes from folder level 3; split from level 1: 24 train (seg_train), 8 test"
    if verb != "advise":  # which needs to know the network
        assert done.returncode == 0, done.stderr
        assert told in done.stderr


@pytest.mark.slow
def test_evaluate_says_it_too(scenes, run_cli, tmp_path):
    made = run_cli("fit", scenes.path, "--labels-level", 3, "-o", tmp_path / "h")
    assert made.returncode == 0, made.stderr
    refused = run_cli("evaluate", tmp_path / "h", scenes.path)
    assert (refused.returncode, "names of splits beside" in refused.stderr) == (2, True)
    done = run_cli("evaluate", tmp_path / "h", scenes.path, "--labels-level", 3, "--json")
    assert done.returncode == 0, done.stderr
    assert "split from level 1: 24 train (seg_train), 8 test (seg_test)" in done.stderr
    assert '"n_test": 8' in done.stdout


@pytest.mark.long
def test_a_level_beside_a_table_is_refused(scenes, run_cli, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\n")
    given = ("--labels", tmp_path / "t.csv", "--labels-level", 3)
    refused = run_cli("compare", scenes.path, *given)
    assert refused.returncode == 2
    assert "leave it or --labels out" in refused.stderr


def test_the_parts_of_a_split_are_those_that_were_trained_and_tested(scenes):
    task = make_task(scenes, labels_from_folders(scenes.paths, 3))
    assert task.classes == ["cat", "dog"]
    assert (task.split == "train").sum() == 24
    assert (task.split == "test").sum() == 8
    assert any(
        "not used: 1 image of the cache without a label" in notice for notice in task.notices
    )
