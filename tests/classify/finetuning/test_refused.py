"""`FineTuneClassifier` as an estimator like any other, and what it refuses."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify import FineTuneClassifier, finetune
from classify.errors import (
    CallError,
    DivergedError,
    HeadMismatchError,
    OutputError,
    TooFewImagesError,
    UnknownPathError,
)
from featurize import FeatureCache, run
from featurize.errors import BackboneError, UnknownLayerError

NUMBERS = "it hands in numbers; this classifier takes image paths"
EXEMPT = dict.fromkeys(
    (
        "check_fit_score_takes_y",
        "check_estimators_overwrite_params",
        "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_n_features_in_after_fitting",
        "check_estimators_dtypes",
        "check_complex_data",
        "check_dtype_object",
        "check_estimators_empty_data_messages",
        "check_pipeline_consistency",
        "check_estimators_nan_inf",
        "check_estimator_sparse_tag",
        "check_estimator_sparse_array",
        "check_estimator_sparse_matrix",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_classifier_data_not_an_array",
        "check_classifiers_one_label",
        "check_classifiers_classes",
        "check_classifiers_train",
        "check_classifiers_regression_target",
        "check_supervised_y_2d",
        "check_class_weight_classifiers",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_fit2d_1sample",
        "check_fit2d_1feature",
        "check_dict_unchanged",
        "check_fit_idempotent",
        "check_fit_check_is_fitted",
        "check_n_features_in",
        "check_fit2d_predict1d",
        "check_requires_y_none",
        "check_positive_only_tag_during_fit",
    ),
    NUMBERS,
)


@pytest.mark.filterwarnings("ignore")  # the checks' own data gives warnings on purpose
@parametrize_with_checks([FineTuneClassifier()], expected_failed_checks=lambda _: EXEMPT)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.long
def test_it_is_cloned_scored_and_searched(tuner, pictured):
    X, y = np.array(pictured.paths), np.array(pictured.labels)
    model = tuner(maps=True, mixup=0.1)
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert copied.set_params(mixup=0.0).mixup == 0
    assert (cross_val_score(clone(tuner(augment="none")), X, y, cv=2) > 0.5).all()
    search = GridSearchCV(tuner(), {"tune": ["stage4", "stage3"]}, cv=2).fit(X, y)
    assert search.best_params_["tune"] in ("stage4", "stage3")
    assert (search.predict(X[:, None]) == y).mean() > 0.6


# --- bad input -----------------------------------------------------------------------------


def test_labels_that_nothing_can_be_learnt_from(tuner, pictured):
    paths, model = pictured.paths, tuner()
    with pytest.raises(TooFewImagesError, match="every training image has the label 'x'"):
        model.fit(paths, ["x"] * 60)
    with pytest.raises(
        TooFewImagesError, match=r"1 of 4 classes .* \('8'\).*: add images, or take"
    ):
        model.fit(paths, ["8", *pictured.labels[1:]])
    with pytest.raises(TooFewImagesError, match="mark some as val in a split column"):
        model.fit(paths, pictured.labels, groups=pictured.labels)
    with pytest.raises(TooFewImagesError, match="class '7' has validation images only"):
        model.fit(paths, pictured.labels, validation=np.array(pictured.labels) == "7")
    with pytest.raises(CallError, match="59 paths do not go with 60 labels"):
        model.fit(paths[1:], pictured.labels)
    with pytest.raises(CallError, match="59 groups do not go with 60 labels"):
        model.fit(paths, pictured.labels, groups=pictured.labels[1:])
    with pytest.raises(CallError, match="image paths, as text"):
        model.fit([1, 2], ["a", "b"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tune": "stage5"}, UnknownLayerError, "no layer 'stage5'"),
        ({"tune": "pool"}, CallError, "nothing from 'pool' on has weights to tune"),
        ({"augment": "flip"}, CallError, "flips, crops, none, not 'flip'"),
        ({"batch_norm": "on"}, CallError, "frozen or trained, not 'on'"),
        ({"classifier": "svm"}, CallError, "linear, mlp, not 'svm'"),
        ({"epochs": 0}, CallError, "epochs is 1 or more, not 0"),
        ({"mixup": -1}, CallError, "mixup is 0 or above"),
        ({"patience": 0}, CallError, "patience is 1 or more, not 0"),
        ({"learning_rate": 0}, CallError, "above 0, not 0"),
        ({"learning_rate": 1e30}, DivergedError, "Lower --learning-rate"),
        (
            {"learning_rate": 1e30, "batch_size": 64},
            DivergedError,
            "validation loss is nan after epoch",
        ),
    ],
)
def test_options_that_cannot_be(options, error, message, tuner, pictured):
    with pytest.raises(error, match=message):
        tuner(**options).fit(pictured.paths, pictured.labels)


def test_a_cache_that_does_not_serve(tuner, pictured, make_cache, tmp_path):
    cache = FeatureCache(pictured.cache)
    source = {"backbone": "seedling", "preprocess": dict(cache.extractor.preprocess)}
    wrong = make_cache(tmp_path / "w.h5", {"stage4": np.ones((60, 512), "<f4")}, **source)
    with pytest.raises(HeadMismatchError, match="made with another weights"):
        tuner(maps=True, cache=wrong.path).fit(pictured.paths, pictured.labels)
    with pytest.raises(
        UnknownPathError, match=r"1 of 60 images are not in .*'x\.png'.*featurize run"
    ):
        tuner(maps=True).fit(["x.png", *pictured.paths[1:]], pictured.labels)


@pytest.mark.long
def test_it_says_which_layer_to_cache_and_what_that_takes(tuner, pictured):
    said = []
    tuner(tune="stage4").fit(pictured.paths, pictured.labels, say=said.append)
    # 128 x 8 x 8 float32 an image.
    assert any("--layers stage3:none (2.0 MB for 60 images)" in text for text in said)
    said.clear()
    tuner(tune="stage3.1.second", cache=pictured.cache).fit(
        pictured.paths, pictured.labels, say=said.append
    )
    assert any("runs in every epoch: 2 tensors cross" in text for text in said)


def test_two_tensors_that_cross_need_another_cut(tuner, pictured, tmp_path):
    path = tmp_path / "c.h5"
    run(pictured.images, path, backbone="seedling", layers="stage2", device="cpu")
    with pytest.raises(BackboneError, match="choose the beginning of a stage"):
        tuner(tune="stage3.1.second", cache=path).fit(pictured.paths, pictured.labels)
    with pytest.raises(UnknownLayerError, match=r"2\.0 MB for 60 images; .*--layers stage3:none"):
        tuner(cache=path).fit(pictured.paths, pictured.labels)
    with pytest.raises(UnknownLayerError, match=r"to start from; .*--layers stage4:avg"):
        tuner(cache=path, tune="all").fit(pictured.paths, pictured.labels)


def test_what_lies_where_the_checkpoint_would_go_is_kept(pictured, tmp_path):
    part = tmp_path / "M.part"
    part.write_text("mine")
    with pytest.raises(OutputError, match=r"M\.part exists and is not an unfinished training"):
        finetune(pictured.images, tmp_path / "M", backbone="seedling", epochs=1)
    assert part.read_text() == "mine"
    with pytest.raises(OutputError, match="not an unfinished training"):
        FineTuneClassifier("seedling", root=pictured.images).fit(
            pictured.paths, pictured.labels, checkpoint=part
        )
    assert part.read_text() == "mine"
