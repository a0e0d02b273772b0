"""`finetune` on several labels, numbers and grades: one file, which predicts what was reported."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, mean_absolute_error
from typer.testing import CliRunner

from classify import evaluate, finetune, fit, load_head, predict, save_head
from classify.cli.app import app
from classify.errors import CallError, HeadMismatchError, TooFewImagesError
from classify.evaluation.targets.titles import format_metric_name
from featurize import FeatureCache, run

OPTIONS = {"backbone": "seedling", "tune": "stage4", "epochs": 2, "batch_size": 16}
OPTIONS |= {"device": "cpu", "augment": "none", "learning_rate": 1e-3}
ASKED = {
    "multi": {"columns": "bar,red"},
    "number": {"kind": "number", "column": "size"},
    "grade": {"column": "grade", "order": "small,middle,large"},
}
HEADS = {"multi": "softmax", "number": "linear", "grade": "ordinal"}


@pytest.fixture(scope="module")
def tuned(squares, tmp_path_factory):
    """By kind: the file, what `finetune` returned, and the notes while it trained."""
    folder, made = tmp_path_factory.mktemp("tuned"), {}

    def make(kind):
        if kind not in made:
            path, notes = folder / f"{kind}.head", []
            result = finetune(
                squares.images,
                path,
                squares.table,
                **OPTIONS,
                **ASKED[kind],
                report=lambda step: notes.append(step.note),
            )
            made[kind] = path, result, notes
        return made[kind]

    return make


def truth_of(squares, kind):
    truth = {"multi": squares.labels, "number": squares.sizes, "grade": squares.grades}[kind]
    return truth.reshape(len(truth), -1)


@pytest.mark.long
@pytest.mark.parametrize("kind", ASKED)
def test_what_was_reported_is_what_the_file_predicts(kind, tuned, squares):
    path, result, _ = tuned(kind)
    head = load_head(path)
    assert (head.kind, head.head, head.network) == (kind, HEADS[kind], path)
    found = predict(head, squares.images)
    assert found.paths == squares.paths
    scale = np.abs(found.values).max()
    for predictions in (result.predictions, result.validated):
        ours = found.values[predictions.rows]
        assert ours == pytest.approx(predictions.values, abs=1e-4 * scale)
        truth = truth_of(squares, kind)[predictions.rows]
        assert predictions.truth == pytest.approx(truth, nan_ok=True)
    assert (len(result.predictions), len(result.validated)) == (result.n_test, result.n_validation)
    assert result.n_train + result.n_validation + result.n_test == len(squares.paths)


@pytest.mark.long
@pytest.mark.parametrize("kind", ASKED)
def test_the_record_is_flat_and_right(kind, tuned):
    path, result, notes = tuned(kind)
    record = result.to_dict()
    json.dumps(record, allow_nan=False)
    assert load_head(path).record == json.loads(json.dumps(record))
    given = [record[name] for name in ("strategy", "kind", "backbone", "tune", "classifier")]
    assert given == ["finetune", kind, "seedling", "stage4", "linear"]
    assert "lora" not in record
    assert "accuracy_ci" in record if kind == "grade" else "accuracy" not in record
    metric = record["metric"]
    low, high = record[f"{metric}_ci"]
    assert low <= record[metric] == record["test_metric"] <= high
    best = record["history"][record["best_epoch"] - 1]
    assert best["validation"] == record["validation"]
    assert best["validation_loss"] == min(each["validation_loss"] for each in record["history"])
    assert any(f"validation {format_metric_name(metric)} " in note for note in notes)
    truth, values = result.predictions.truth, result.predictions.values
    if kind == "number":
        assert record["mae"] == pytest.approx(mean_absolute_error(truth, values))
        assert record["interval"]["coverage"] == 0.9 if record["interval"] else True
    elif kind == "grade":
        expected = cohen_kappa_score(truth[:, 0], values[:, 0], weights="quadratic")
        assert record["quadratic_kappa"] == pytest.approx(expected)
        assert np.sum(record["confusion"]) == record["n_test"]
    else:
        known = ~np.isnan(truth)
        precisions = [
            average_precision_score(truth[known[:, k], k], values[known[:, k], k]) for k in (0, 1)
        ]
        assert record["macro_average_precision"] == pytest.approx(np.mean(precisions))
        assert record["labels"]["red"]["n"] == known[:, 1].sum() < record["n_test"]
    # Better than a guess without an image, on twelve of them or so.
    guess = record["baseline"][metric]
    assert record[metric] < guess if metric == "mae" else record[metric] > guess + 0.2


@pytest.mark.long
@pytest.mark.parametrize("kind", ASKED)
def test_its_cache_serves_its_head(kind, tuned, squares, tmp_path):
    path, result, _ = tuned(kind)
    run(squares.images, tmp_path / "c.h5", backbone=str(path), device="cpu")
    asked = {name: value for name, value in ASKED[kind].items() if name in ("column", "columns")}
    metrics, notices = evaluate(load_head(path), tmp_path / "c.h5", squares.table, **asked)
    assert metrics["n_test"] == result.n_test
    assert metrics[result.metric] == pytest.approx(result.test_metric, rel=1e-4)
    assert any("the head was trained on them" in text for text in notices)
    save_head(load_head(path), tmp_path / "again")  # with its network
    one, other = (predict(load_head(p), squares.images).values for p in (path, tmp_path / "again"))
    assert (one == other).all()


def test_labels_that_are_not_known_teach_nothing(squares, tmp_path):
    """What the table says of them makes no difference; what it says of others does."""
    lines = squares.table.read_text().splitlines()
    values = []
    for k, (mark, other) in enumerate((("?", 0), ("?", 0), ("NA", 0), ("?", 1))):
        flipped = [line.replace(",?", f",{mark}") for line in lines]
        if other:
            flipped[2:6] = [
                line[:-1] + str(1 - int(line[-1])) if line[-1] in "01" else line
                for line in flipped[2:6]
            ]
        (tmp_path / "t.csv").write_text("\n".join(flipped) + "\n")
        options = OPTIONS | {"epochs": 1, "tune": "stage4"}
        made = finetune(
            squares.images, tmp_path / f"M{k}", tmp_path / "t.csv", columns="bar,red",
            cache=squares.cache, **options,
        )  # fmt: skip
        values.append(made.head.scorer.coef)
        assert any("not known, and left out for that label" in text for text in made.notices)
    assert (values[0] == values[1]).all()
    assert (values[0] == values[2]).all()
    assert not np.allclose(values[0], values[3])


@pytest.mark.long
@pytest.mark.parametrize("kind", ASKED)
def test_it_starts_as_the_head_that_is_given(kind, squares, tmp_path):
    names = {"multi": "softmax", "number": "ridge", "grade": "ordinal"}
    head, _ = fit(
        squares.cache, squares.table, names[kind], "stage4", prepare="standardise", **ASKED[kind]
    )
    save_head(head, tmp_path / "h")
    options = OPTIONS | {"learning_rate": 1e-30, "epochs": 1}
    for given in (head, tmp_path / "h"):
        made = finetune(
            squares.images, tmp_path / "M", squares.table, cache=squares.cache, init_head=given,
            **options, **ASKED[kind],
        )  # fmt: skip
        X = np.asarray(FeatureCache(squares.cache).features("stage4"))
        ours, theirs = made.head.outputs(X), head.outputs(X)
        slope = 1.0
        if kind == "multi" and made.head.calibration is not None:
            assert made.head.calibration[1] == pytest.approx(0)
        if kind == "grade":  # score and cutpoints may have been softened together
            slope = np.ptp(theirs) / np.ptp(ours)
            assert made.head.cutpoints * slope == pytest.approx(head.cutpoints, rel=1e-3)
        near = 1e-3 * float(np.abs(theirs).max())
        assert ours * float(slope) == pytest.approx(theirs, rel=1e-3, abs=near)


@pytest.mark.long
def test_heads_of_other_labels_are_refused(squares, tmp_path):
    def head_of(name, kind):
        return fit(
            squares.cache, squares.table, name, "stage4", prepare="standardise", **ASKED[kind]
        )[0]

    ridge, ordinal = head_of("ridge", "number"), head_of("ordinal", "grade")
    cases = (
        ("grade", ridge, "another kind of labels .number. than what is tuned .grade."),
        ("grade", head_of("softmax", "grade"), "another output .one for each grade."),
        ("number", ordinal, "another kind of labels"),
        ("number", head_of("knn", "number"), "from a knn head: it is not linear"),
    )
    for kind, given, message in cases:
        with pytest.raises(HeadMismatchError, match=message):
            finetune(
                squares.images, tmp_path / "M", squares.table, init_head=given, **OPTIONS,
                **ASKED[kind],
            )  # fmt: skip
    reordered = ASKED["grade"] | {"order": "small,large,middle"}
    with pytest.raises(HeadMismatchError, match="another list of labels"):
        finetune(
            squares.images, tmp_path / "M", squares.table, init_head=ordinal, **OPTIONS, **reordered
        )


def test_options_of_classes_are_refused_or_left_out(squares, tmp_path):
    with pytest.raises(CallError, match="of the kind number have none: leave --class-weight out"):
        finetune(
            squares.images, tmp_path / "M", squares.table, class_weight="balanced", **OPTIONS,
            **ASKED["number"],
        )  # fmt: skip
    said = []
    finetune(
        squares.images, tmp_path / "M", squares.table, mixup=0.2, say=said.append,
        cache=squares.cache, **(OPTIONS | {"epochs": 1}), **ASKED["grade"],
    )  # fmt: skip
    assert sum("mixup is left out" in text for text in said) == 1
    with pytest.raises(CallError, match="--order is for labels of the kind grade, not number"):
        finetune(
            squares.images, tmp_path / "M", squares.table, kind="number", order="a,b", **OPTIONS
        )


def test_images_that_cannot_be_read(squares, tmp_path):
    shutil.copytree(squares.images, tmp_path / "images")
    options = OPTIONS | {"epochs": 1} | ASKED["number"]
    (tmp_path / "images" / "000.png").write_bytes(b"no image")
    made = finetune(tmp_path / "images", tmp_path / "M", squares.table, test_size=0, **options)
    assert made.n_train + made.n_validation == 71
    assert (made.n_test, made.test_metric, made.metrics) == (0, None, {})
    assert any("000.png is left out: not an image" in text for text in made.notices)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image " + path.name.encode())
    with pytest.raises(TooFewImagesError, match="no image to train on can be read"):
        finetune(tmp_path / "images", tmp_path / "M", squares.table, **options)


@pytest.mark.long
def test_cached_maps_train_as_images_do(squares, tmp_path):
    said = []
    options = OPTIONS | ASKED["grade"] | {"epochs": 1, "init_head": "random"}
    plain = finetune(squares.images, tmp_path / "M", squares.table, **options)
    mapped = finetune(
        squares.images, tmp_path / "N", squares.table, cache=squares.cache, say=said.append,
        **options,
    )  # fmt: skip
    assert any("training from the cached maps of stage3@none" in text for text in said)
    for name in ("loss", "validation_loss"):
        assert plain.history[0][name] == pytest.approx(mapped.history[0][name], rel=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("kind", ASKED)
def test_the_command(kind, squares, tmp_path):
    words = [f"--{name}={value}" for name, value in ASKED[kind].items()]
    words += [f"--{name.replace('_', '-')}={v}" for name, v in (OPTIONS | {"epochs": 1}).items()]
    line = ["finetune", squares.images, "-o", tmp_path / "M", "--labels", squares.table, *words]
    line += ["--cache", squares.cache]
    shown = CliRunner().invoke(app, list(map(str, line)))
    assert shown.exit_code == 0, shown.stderr
    expected = {"multi": "macro average precision", "number": "MAE", "grade": "quadratic kappa"}
    assert f"epoch 1 of 1: validation {expected[kind]} " in shown.stderr
    assert f"{expected[kind]} " in shown.stdout
    assert "by a constant guess" in shown.stdout
    told = CliRunner().invoke(app, [*map(str, line), "--json"])
    assert json.loads(told.stdout)["kind"] == kind
    found = CliRunner().invoke(app, ["predict", str(tmp_path / "M"), str(squares.images), "--json"])
    assert found.exit_code == 0, found.stderr
    assert len(json.loads(found.stdout)["predictions"]) == len(squares.paths)


def test_the_kind_is_recognised_as_by_fit(squares, tmp_path):
    made = finetune(
        squares.images, tmp_path / "M", squares.table, column="tags", cache=squares.cache,
        **(OPTIONS | {"epochs": 1}),
    )  # fmt: skip
    assert made.kind == "multi"
    assert made.names == ["bar", "red"]
    assert any("is taken for 2 labels (--kind multi)" in text for text in made.notices)
