"""The command line of stage 2: `classify fit` and `classify compare`. Thin.

What is heavy is imported inside the verbs: ``--help`` must answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from classify.console import counting, guarded, show_json, show_notes, waiting

app = typer.Typer(
    name="classify",
    help="Train heads on a feature cache: seconds each, no image read, no forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Cache = Annotated[Path, typer.Argument(metavar="C.h5", help="A cache made by `featurize run`.")]
Column = Annotated[str, typer.Option(help="The column of the table that holds the labels.")]
TestSize = Annotated[
    float, typer.Option(help="Share to hold out where neither table nor folders have a split.")
]
Seed = Annotated[int, typer.Option(help="Decides which images are held out, and the folds.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        import classify

        print(f"classify (headgraft) {classify.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    cache: Cache,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="H", help="Where to save the head.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(metavar="T.csv", help="Table path,label[,split][,group]; else folder names."),
    ] = None,
    column: Column = "label",
    head: Annotated[str, typer.Option(help="softmax or linear-svm.")] = "softmax",
    layer: Annotated[
        str | None,
        typer.Option(metavar="L[,L2]", help="Several are joined; the deepest if not given."),
    ] = None,
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one head, its C chosen by validation, and save it."""
    with guarded(debug):
        from classify.persist import check_target, save_head

        check_target(output)
        with waiting(f"training {head}"):
            from classify.evaluate import fit as fit_head

            fitted, record = fit_head(
                cache, labels, head, layer, column=column, test_size=test_size, seed=seed
            )
        save_head(fitted, output)
        show_notes(fitted.notices)
        if json:
            show_json(record.to_json())
        else:
            from classify.tables import show_fit

            show_fit(record, str(output))


@app.command()
def compare(
    cache: Cache,
    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="T.csv", help="A label table; once for each task."),
    ] = None,
    column: Column = "label",
    heads: Annotated[
        str, typer.Option(metavar="a,b", help="Kinds of head.")
    ] = "softmax,linear-svm",
    layers: Annotated[
        str,
        typer.Option(metavar="each,joined|A,B", help="Every layer, all at once, or these."),
    ] = "each,joined",
    test_size: TestSize = 0.2,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every head on every layer for every task, and rank them by validation."""
    with guarded(debug):
        with waiting("reading the cache"):
            from classify.comparison import compare as compare_heads
            from classify.features import open_cache

            opened = open_cache(cache)
        with counting() as progress:
            found = compare_heads(
                opened,
                labels or None,
                heads,
                layers,
                column=column,
                test_size=test_size,
                seed=seed,
                progress=progress,
            )
        show_notes(found.notices)
        if json:
            show_json(found.to_json())
        else:
            from classify.tables import show_comparison

            show_comparison(found, "+".join(opened.layers))


def main() -> None:
    """Run the command line."""
    app(prog_name="classify")
