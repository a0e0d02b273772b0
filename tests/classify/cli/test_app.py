"""The command line: what it prints where, and its exit status."""

import json
import subprocess
import sys

import pytest

from classify import load_head


def test_help_loads_nothing_heavy(run_cli):
    done = run_cli("--help")
    assert done.returncode == 0
    assert "fit" in done.stdout
    assert "compare" in done.stdout
    code = (
        "import sys; from classify.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sklearn', 'h5py', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version(call):
    from classify import __version__

    assert call("--version") == (0, f"classify (headgraft) {__version__}\n", "")


@pytest.mark.long
def test_fit_json_is_one_object_with_the_record(run_cli, cache, table, tmp_path):
    output = tmp_path / "digit.head"
    done = run_cli(
        "fit", cache.path, "--labels", table, "--layer", "coarse", "-o", output, "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert {
        *("task", "head", "layer", "classes", "n_train", "n_test", "accuracy", "accuracy_ci"),
        *("validation", "C", "seconds"),
    } < set(record)
    assert record["layer"] == "coarse"
    assert load_head(output).record == record


def test_fit_says_what_it_did(call, cache, parity, tmp_path):
    output = tmp_path / "h"
    options = ("--labels", parity, "--head", "linear-svm", "--layer", "fine,coarse", "-o", output)
    status, out, err = call("fit", cache.path, *options)
    assert (status, err) == (0, "")
    for words in (
        "parity, 2 classes",
        "linear-svm on fine+coarse",
        "in validation",
        "95 % interval",
        str(output),
        "no image was read, no forward pass made",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.long
def test_compare_json(call, cache, table, parity):
    options = ("--labels", table, "--labels", parity, "--layers", "joined,fine", "--json")
    status, out, err = call("compare", cache.path, "--heads", "softmax", *options)
    # Progress is said of what takes longer than two seconds, as it may here.
    said = [line for line in err.splitlines() if not line.startswith("heads: ")]
    assert (status, said) == (0, [])
    found = json.loads(out)
    assert [(r["task"], r["layer"]) for r in found["records"]] == [
        ("digit", "fine+coarse"),
        ("digit", "fine"),
        ("parity", "fine+coarse"),
        ("parity", "fine"),
    ]
    assert found["best"] in found["records"]
    assert set(found["best_per_task"]) == set(found["checks"]) == {"digit", "parity"}


@pytest.mark.long
def test_compare_prints_a_table_sorted_by_validation(call, cache, table):
    heads = "softmax,linear-svm"
    status, out, _ = call("compare", cache.path, "--labels", table, "--heads", heads)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].strip() == "digit: 10 classes, 480 training and 120 test images"
    rows = [line for line in lines if "softmax  " in line or "linear-svm  " in line]
    assert len(rows) == 6
    assert rows[0].split()[0] == "*"
    validation = [float(row.split(" 0.")[1].split()[0]) for row in rows]
    assert validation == sorted(validation, reverse=True)
    assert "all 2 joined" in out
    assert "6 heads from one cache in " in out
    assert "no image was read, no forward pass made." in out
    assert "Best by validation, digit: " in lines[-2]
    assert lines[-1].startswith("  classify fit ")
    assert lines[-1].endswith(" -o digit.head")
    assert max(map(len, lines[:-1])) <= 100  # a command is whole
    assert "\x1b" not in out


@pytest.mark.long
def test_report_json(call, cache, parity, tmp_path):
    page = tmp_path / "r.html"
    line = ("report", cache.path, "--labels", parity, "--heads", "lda", "-o", page, "--json")
    status, out, _ = call(*line)
    assert status == 0
    found = json.loads(out)
    assert set(found) == {"records", "best", "output", "advice"}
    assert found["output"] == str(page)
    assert set(found["advice"]) <= {"parity"}
    assert page.exists()


def test_notes_go_to_stderr(call, cache, table, tmp_path):
    status, out, err = call(
        *("fit", cache.path, "--labels", table, "--layer", "coarse"),
        *("--test-size", 0, "-o", tmp_path / "h", "--json"),
    )
    assert status == 0
    assert json.loads(out)["accuracy"] is None
    assert err == "note: there are no test images, so no test accuracy\n"


def test_names_are_not_read_as_markup(call, cache, parity, tmp_path):
    odd = tmp_path / "[red]odd[ :smile:.csv"
    odd.write_text(parity.read_text())
    status, out, _ = call("compare", cache.path, "--labels", odd, "--layers", "coarse")
    assert status == 0
    assert "[red]odd[ :smile:: 2 classes" in out
    assert "Best by validation, [red]odd[ :smile:: " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("fit", "none.h5", "-o", "{tmp}/h"), "none.h5 does not exist; make it with"),
        (("fit", "{table}", "-o", "{tmp}/h"), "is not a feature cache"),
        (("fit", "{cache}", "-o", "{tmp}/h"), "give a table with --labels"),
        (("fit", "{cache}", "--labels", "no.csv", "-o", "{tmp}/h"), "no.csv does not exist"),
        (("fit", "{cache}", "--labels", "{tmp}", "-o", "{tmp}/h"), "Is a directory"),
        (
            ("fit", "{cache}", "--labels", "{table}", "--column", "labels", "-o", "{tmp}/h"),
            "did you mean 'label'",
        ),
        (
            ("fit", "{cache}", "--labels", "{table}", "--head", "svm", "-o", "{tmp}/h"),
            "no head 'svm', only softmax, softmax-lda, linear-svm",
        ),
        (
            ("fit", "{cache}", "--labels", "{table}", "--layer", "deep", "-o", "{tmp}/h"),
            "no layer 'deep'; it has fine, coarse",
        ),
        (("fit", "looked-for-later.h5", "-o", "{tmp}/x/h"), "there is no folder"),
        (("fit", "{cache}", "--labels", "{table}", "-o", "{cache}"), "is not a head"),
        (
            ("compare", "{cache}", "--labels", "{table}", "--heads", "softmax,ridg"),
            "no head 'ridg'",
        ),
        (
            ("compare", "{cache}", "--labels", "{table}", "--test-size", "2"),
            "share from 0 to below 1",
        ),
    ],
)
def test_wrong_input_is_one_line_and_status_2(call, cache, table, tmp_path, options, message):
    before = cache.path.read_bytes()
    names = {"cache": cache.path, "table": table, "tmp": tmp_path}
    status, out, err = call(*(option.format(**names) for option in options))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
    assert cache.path.read_bytes() == before


def test_a_mistyped_option_is_status_2(call, cache):
    status, _, err = call("compare", cache.path, "--label", "x.csv")
    assert status == 2
    assert "--label" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(call, tmp_path):
    status, _, err = call("fit", "none.h5", "-o", tmp_path / "h", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert "error: none.h5 does not exist" in err


def test_the_unexpected_is_status_1_and_says_how_to_see_more(call, cache, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the sky fell")

    monkeypatch.setattr("classify.experiments.targets.any_kind.fit", broken)
    status, out, err = call("fit", cache.path, "-o", tmp_path / "h")
    assert (status, out) == (1, "")
    assert err == "error: unexpected RuntimeError: the sky fell; --debug shows the traceback\n"
