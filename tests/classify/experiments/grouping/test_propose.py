"""`classify groups`: crops, bursts and stems are found, unrelated pictures are left alone."""

import csv
import json
import time
from hashlib import md5

import numpy as np
import pytest
from PIL import Image

from classify import find_groups, fit
from classify.checks.name_groups import suggest_groups
from classify.errors import OutputError
from featurize import run
from featurize.cache.reader import FeatureCache

N_PICTURES, N_CROPS = 90, 3


def draw_scene(rng, width, height):
    """A large blurred picture."""
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Pictures of three classes with three crops each: the caches by kind of names, the truth."""
    home, rng = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    truth: dict[str, dict[str, int]] = {"plain": {}, "hidden": {}, "single": {}}
    for i in range(N_PICTURES):
        kind = "abc"[i % 3]
        picture = draw_scene(rng, 128, 128)
        for k in range(N_CROPS + 1):
            side = 128 if k == 0 else int(128 * rng.uniform(0.8, 0.95))
            x, y = rng.integers(0, 129 - side, 2)
            image = picture.crop((x, y, x + side, y + side)).resize((64, 64))
            secret = md5(b"%d %d" % (i, k)).hexdigest()[:9]
            names = {"plain": f"photo{i:03}-{k}.png", "hidden": f"{secret}.png"}
            if k == 0:
                names["single"] = f"{md5(b'%d' % i).hexdigest()[:9]}.png"
            for style, name in names.items():
                (home / style / kind).mkdir(parents=True, exist_ok=True)
                image.save(home / style / kind / name)
                truth[style][f"{kind}/{name}"] = i
    for style in truth:
        run(home / style, home / f"{style}.h5", backbone="seedling", layers="stage3")
    return home, truth


def agreement(proposal, truth):
    """Recall and precision over pairs of images."""
    number = {group: k for k, group in enumerate(dict.fromkeys(proposal.groups))}
    found = np.array([number[group] for group in proposal.groups])
    real = np.array([truth[path] for path in proposal.paths])
    same_found, same_real = found[:, None] == found, real[:, None] == real
    both = (same_found & same_real).sum() - len(found)
    return both / (same_real.sum() - len(real)), both / max(1, same_found.sum() - len(found))


@pytest.mark.long
def test_crops_are_found_with_names_and_without(crops):
    home, truth = crops
    recall, precision = agreement(find_groups(home / "plain.h5"), truth["plain"])
    assert recall > 0.99
    assert precision > 0.99
    recall, precision = agreement(find_groups(home / "hidden.h5"), truth["hidden"])
    assert recall > 0.5
    assert precision > 0.95


@pytest.mark.long
def test_accuracy_falls_to_the_honest_value(crops):
    """The pictures say nothing of their class: a third is right. Torn crops look like knowledge."""
    home, _ = crops
    proposal = find_groups(home / "plain.h5")
    low, high = proposal.accuracy_after_ci
    assert low <= 1 / 3 <= high
    assert proposal.accuracy_before > high
    single = fit(home / "single.h5", head="lda")[1]
    assert single.accuracy_ci[0] <= proposal.accuracy_after <= single.accuracy_ci[1]


@pytest.mark.long
def test_random_pictures_have_no_groups(crops):
    home, _ = crops
    proposal = find_groups(home / "single.h5")
    assert (proposal.n_groups, proposal.n_grouped) == (0, 0)
    assert proposal.to_dict()["groups"] == {}


def test_digits_have_no_groups_and_no_hint(cache, table):
    """They are numbered, and no picture is like the next."""
    proposal = find_groups(cache, table)
    assert proposal.n_groups == 0
    (rule,) = [rule for rule in proposal.rules if rule.name == "numbers"]
    assert not rule.is_used
    assert "not used" in rule.describe()
    assert not any("look like groups" in notice for notice in fit(cache, table, "lda")[0].notices)


@pytest.mark.long
def test_the_verb_writes_a_table_that_every_verb_takes(crops, run_cli, tmp_path):
    home, _ = crops
    done = run_cli("groups", home / "plain.h5", "-o", tmp_path / "g.csv", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() >= {"groups", "rules", "accuracy_before", "accuracy_after"}
    rows = list(csv.DictReader((tmp_path / "g.csv").read_text().splitlines()))
    assert list(rows[0]) == ["path", "label", "group"]
    assert len(rows) == N_PICTURES * (N_CROPS + 1)
    done = run_cli("fit", home / "plain.h5", "-o", tmp_path / "h", "--head", "lda", "--labels",
                   tmp_path / "g.csv", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] < found["accuracy_before"]
    assert "look like groups" not in done.stderr
    # Its own kind of file is replaced, another is not.
    done = run_cli("groups", home / "single.h5", "-o", tmp_path / "g.csv")
    assert "no groups among 90 images" in done.stdout
    (tmp_path / "mine.csv").write_text("path,label\n")
    with pytest.raises(OutputError, match="a table of groups"):
        find_groups(home / "single.h5").write_csv(tmp_path / "mine.csv")


@pytest.mark.long
def test_fit_and_compare_hint_where_groups_are_evident(crops, run_cli, tmp_path):
    home, _ = crops
    for verb in (("fit", "-o", tmp_path / "h", "--head", "lda"), ("compare", "--heads", "lda")):
        done = run_cli(verb[0], home / "plain.h5", *verb[1:])
        assert "360 images look like groups, by names with one stem" in done.stderr
        assert "`classify groups" in done.stderr


@pytest.mark.long
def test_frames_of_a_film_and_scenes_that_follow(tmp_path):
    """Twelve scenes of fifteen frames, numbered on: each is one group."""
    rng, folder = np.random.default_rng(1), tmp_path / "frames"
    folder.mkdir()
    for scene in range(12):
        picture, x = draw_scene(rng, 640, 160), 0
        for i in range(15):
            frame = picture.crop((x, 16, x + 128, 144)).resize((64, 64))
            frame.save(folder / f"IMG_{scene * 15 + i:04}.png")
            x += int(rng.integers(4, 16))
    run(folder, tmp_path / "f.h5", backbone="seedling", layers="stage3")
    proposal = find_groups(FeatureCache(tmp_path / "f.h5"))
    assert proposal.labels is None
    assert proposal.accuracy_before is None
    recall, precision = agreement(proposal, {f"IMG_{i:04}.png": i // 15 for i in range(180)})
    assert recall > 0.9
    assert precision > 0.9


def links_of(paths, name):
    return {
        tuple(sorted((paths[i], paths[j])))
        for rule in suggest_groups(paths)
        if rule.name == name
        for i, j in rule.links
    }


@pytest.mark.parametrize(
    ("rule", "together", "apart"),
    [
        ("stem", ("p12_left.png", "p12_right.png"), "p13_left.png"),
        ("stem", ("a/photo-1-crop2.jpg", "a/photo-1-crop3.jpg"), "b/photo-1-crop2.jpg"),
        ("same name", ("raw/p1.png", "mask/p1.png"), "raw/p2.png"),
        ("numbers", ("DSC0041.jpg", "DSC0042.jpg"), "DSC0044.jpg"),
        ("times", ("A20240131_235959.jpg", "A20240201_000005.jpg"), "A20240201_000105.jpg"),
    ],
)
def test_names_that_belong_together(rule, together, apart):
    paths = [*together, apart, "zzz.png", "x9y.png", "q.png", "r.png", "s.png"]
    assert links_of(paths, rule) == {tuple(sorted(together))}


def test_strange_names_are_taken_as_they_are():
    paths = ["a\nb_1.png", "\udcff_2.png", "名前_1.png", "名前_2.png", "x" * 5000 + "_1.png"]
    paths += ["20249999_999999.png", "_.png", "", "9" * 400 + ".png"]
    assert ("名前_1.png", "名前_2.png") in links_of(paths, "stem")


def test_many_names_take_little_time():
    paths = [f"shot_{i:06}.png" for i in range(100_000)]
    begin = time.process_time()
    suggest_groups(paths)
    assert time.process_time() - begin < 5
