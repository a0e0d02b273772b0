"""The runner of pages notices what a page says wrongly: each kind of mistake once."""

import pytest

from .blocks import PageError, read_page
from .running import Reader, find_missing
from .verbs import check_calls, wrong_calls


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    one = Reader(tmp_path_factory.mktemp("pages"))
    yield one
    one.end()


@pytest.fixture
def page(tmp_path):
    def write(*blocks: str, top: str = "<!-- world: empty -->"):
        path = tmp_path / "page.md"
        path.write_text("\n\n".join([top, "# A page", *blocks]) + "\n")
        return read_page(path)

    return write


def block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


@pytest.mark.long
def test_commands_and_python_run_in_one_folder_in_order(reader, page):
    written = page(
        block("console", "$ mkdir box", "$ ls", "box"),
        block("python", "from pathlib import Path", "Path('box/a.txt').write_text('first\\nlast')"),
        block("console", "$ cat box/a.txt  # what Python wrote", "first", "..."),
        block("python", "assert Path('box/a.txt').exists()  # the names of the block before"),
        block("text", "not run"),
    )
    assert reader.run(written) == 4


def test_a_command_goes_on_after_a_backslash(reader, page):
    reader.run(page(block("console", "$ mkdir \\", "    a \\", "    b", "$ ls", "a", "b")))


@pytest.mark.long
def test_commands_see_their_world(reader, page):
    call = "$ featurize run photos -o photos.h5 \\\n    --backbone seedling"
    written = page(block("console", call, "121 images..."), top="")
    with pytest.raises(PageError, match=r"did not say '121 images\.\.\.'"):
        reader.run(written)
    expected = block(
        "console", call, "...120 computed...", "$ featurize info photos.h5", "...120..."
    )
    reader.run(page(expected, top=""))


def test_an_exit_code_that_is_shown_is_the_one_that_comes(reader, page):
    call = "$ featurize info nowhere.h5"
    reader.run(page(block("console", f"{call}  # exit 2", "error: ...nowhere.h5...")))
    with pytest.raises(PageError, match=r"page.md:6.*\n*.*expected exit 0"):
        reader.run(page(block("console", call)))
    with pytest.raises(PageError, match="expected exit 3"):
        reader.run(page(block("console", f"{call}  # exit 3")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["$ curl example.org"], "'curl' is none of featurize"),
        (["$ ls | head"], "needs a shell"),
        (["$ cat a > b"], "needs a shell"),
        (["$ ls $HOME"], "needs a shell"),
        (["$ mkdir box", "$ ls", "bag"], "did not say 'bag'"),
        (["$ mkdir a b", "$ ls", "b", "a"], "did not say 'a'"),
        (["output"], "output before any command"),
    ],
)
def test_wrong_commands_are_noticed(reader, page, lines, message):
    with pytest.raises(PageError, match=message):
        reader.run(page(block("console", *lines)))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import warnings; warnings.warn('old', DeprecationWarning)", "DeprecationWarning: old"),
        ("print(names_of_nobody)", "NameError"),
        ("import os; os._exit(1)", "Python ended"),
    ],
)
def test_wrong_python_is_noticed(reader, page, code, message):
    with pytest.raises(PageError, match=message) as caught:
        reader.run(page(block("python", "", code)))
    assert "page.md" in str(caught.value)


def test_what_is_known_is_not_run(reader, page):
    reader.run(page(block("console", "$ pip install nothing && cd away", "$ git push", "$ make x")))


def test_an_unknown_world_or_language_is_noticed(reader, page):
    with pytest.raises(PageError, match="asks for the world 'moon'"):
        reader.run(page(top="<!-- world: moon -->"))
    with pytest.raises(PageError, match="has a block of 'ruby'"):
        page(block("ruby", "puts 1"))


def test_the_top_of_a_page_says_how_it_is_run(page):
    assert page(top="<!-- slow -->\n<!-- world: digits -->").world == "digits"
    assert page(top="<!-- slow -->").slow
    late = page("<!-- slow -->", top="")
    assert (late.world, late.slow) == ("photos", False)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("srun featurize run photos -o p.h5 --engine cuda", []),
        ("sbatch --requeue --wrap 'featurize run photos -o p.h5'", []),
        (
            "sbatch --wrap 'featurize run photos -o p.h5 --mends'",
            ["`featurize run` has no --mends"],
        ),
        ("featurize embed photos", ["there is no `featurize embed`"]),
        ("classify fit a.h5 --heads ridge; ls --all", ["`classify fit` has no --heads"]),
        ("torchrun --nproc-per-node 4 --no-python classify finetune photos -o t --lora=8", []),
        ("classify fit a.h5 # --mends", []),
    ],
)
def test_calls_are_compared_with_the_commands(line, wrong):
    assert wrong_calls(line) == wrong


def test_calls_in_blocks_and_in_the_prose_are_compared(page):
    with pytest.raises(PageError, match=r"page.md:6: `featurize run` has no --mends"):
        check_calls(page(block("bash", "featurize run photos --mends")))
    with pytest.raises(PageError, match=r"there is no `classify heal`"):
        check_calls(page("Then `classify\nheal` does it."))
    assert check_calls(page(block("bash", "for i in 1 2; do featurize run $i; done"))) == 1


def test_dots_are_anything_and_order_counts():
    out, err = "a 1\nb   2\nc\n", "note: x\n"
    assert find_missing(["a ...", "...", "c", "note: ..."], out, err) is None
    assert find_missing(["note: x", "b 2"], out, err) is None
    assert find_missing(["c", "a 1"], out, err) == "a 1"
    assert find_missing(["a"], out, err) == "a"
