"""What a shell offers: verbs, options and values, of both commands; nothing is run to find out."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from classify.evaluation.selection_metric import METRIC_NAMES
from classify.heads.registry import HEADS
from featurize.backbones.families import EMBEDDING_DIMS
from featurize.engines.base import ENGINES, PRECISIONS
from featurize.extraction.options import DTYPES
from featurize.images.preprocess import DECODE_MODES

SPECIMENS = Path(__file__).parents[2] / "specimens"


@pytest.fixture
def home(tmp_path):
    """A working folder with a cache, a table, and a torch that ends the process."""
    for name in ("cache.h5", "digit.csv"):
        shutil.copy(SPECIMENS / name, tmp_path)
    (tmp_path / "poison" / "torch").mkdir(parents=True)
    (tmp_path / "poison" / "torch" / "__init__.py").write_text("import os\nos._exit(99)\n")
    return tmp_path


@pytest.fixture
def complete(home):
    """Press the key in bash, behind each line: ``complete("featurize r", ...)``."""

    def complete(*lines: str) -> list[list[str]]:
        script = "for c in featurize classify; do\n"
        script += 'variable=_${c^^}_COMPLETE; eval "$(env $variable=source_bash $c)"\ndone\n'
        for line in lines:
            words = re.split(" ", line)
            script += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
            script += f"COMPREPLY=(); _{words[0]}_completion {words[0]}\n"
            script += 'printf "%s\\n" "${COMPREPLY[@]}" --end--\n'
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(home / "poison"),
        }
        done = subprocess.run(
            ["bash", "--norc", "-c", script],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        groups = done.stdout.split("--end--\n")[:-1]
        return [group.split() for group in groups]

    return complete


def test_verbs_options_and_names(complete):
    found = complete(
        "featurize v",
        "classify e",
        "featurize run --ba",
        "featurize run a --backbone ",
        "featurize layers resnet1",
        "classify finetune a --backbone seedl",
    )
    assert found[:3] == [["verify"], ["evaluate"], ["--backbone"]]
    assert {*found[3]} == {*EMBEDDING_DIMS, "lite0"}
    assert found[4:] == [["resnet101", "resnet152", "resnet18"], ["seedling"]]


def test_words_of_options_are_those_that_exist(complete):
    expected = {
        "featurize run --engine ": [*ENGINES],
        "featurize run --precision ": [*PRECISIONS],
        "featurize run --dtype ": [*DTYPES],
        "featurize run --decode ": [*DECODE_MODES],
        "classify compare --heads ": [*HEADS],
        "classify compare --heads softmax,l": ["softmax,linear-svm", "softmax,lda"],
        "classify fit --metric ": [*METRIC_NAMES],
    }
    assert dict(zip(expected, complete(*expected), strict=True)) == expected


def test_layers_of_a_network_and_of_a_cache_and_columns(complete):
    found = complete(
        "featurize run a --backbone resnet18 --layers layer3,la",
        "featurize export cache.h5 --layers ",
        "classify compare cache.h5 --layers each,",
        "classify fit cache.h5 --labels digit.csv --column ",
        "classify fit none.h5 --layer ",
    )
    assert found == [
        ["layer3,last", "layer3,layer1", "layer3,layer2", "layer3,layer4"],
        ["stage2", "stage3@max", "stage4"],
        ["each,joined", "each,stage2", "each,stage3@max", "each,stage4"],
        ["path", "label"],
        [],
    ]


def test_nothing_of_a_strangers_table_is_run(complete, home):
    """Some shells evaluate what is offered: so only plain words of a file are."""
    names = [
        "path",
        "$(touch ran)",
        "`touch ran`",
        "a;touch ran",
        "'x",
        "ok.one",
        "*",
        "\x1b[2J",
        "b c",
    ]
    (home / "t.csv").write_text(",".join(names) + "\n")
    assert complete("classify fit c.h5 --labels t.csv --column ") == [["path", "ok.one"]]
    assert not (home / "ran").exists()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered(shell, command):
    """Their scripts, and what these read when the key is pressed."""
    script = command("featurize", env=os.environ | {"_FEATURIZE_COMPLETE": f"source_{shell}"})
    assert script.returncode == 0
    assert f"_FEATURIZE_COMPLETE=complete_{shell}" in script.stdout
    asked = {
        "_FEATURIZE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "featurize run --pool ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    answer = command("featurize", env=os.environ | asked)
    assert answer.returncode == 0
    assert re.findall("[a-z]+", answer.stdout.partition("((")[2] or answer.stdout) == [
        *("avg", "max", "avgmax", "none", "token")
    ]


def test_an_unknown_shell_is_told_the_way(tmp_path):
    """Where no shell is above the command, none can be recognised."""
    line = [Path(sys.executable).with_name("featurize"), "--install-completion"]
    code = f"import subprocess, sys; sys.exit(subprocess.call({list(map(str, line))!r}))"
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/odd"}
    stub = tmp_path / "shellingham"
    stub.mkdir()
    (stub / "__init__.py").write_text(
        "class ShellDetectionFailure(Exception): pass\n"
        "def detect_shell(*_, **__): raise ShellDetectionFailure\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "`_FEATURIZE_COMPLETE=source_zsh featurize`" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shellingham"]
