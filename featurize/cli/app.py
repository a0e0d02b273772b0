"""The command `featurize`: each verb calls one public function and prints its result.

The docstring of a verb is its ``--help`` text. Its parameters are documented by their options.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featurize.cli.command import make_app
from featurize.cli.completion import complete_word, list_backbones
from featurize.cli.console import (
    EXIT_INCOMPLETE,
    EXIT_UNEXPECTED,
    EXIT_WRONG_INPUT,
    handle_errors,
    print_json,
    print_stderr,
)
from featurize.cli.options import (
    Backbone,
    CachedLayers,
    CacheFile,
    Column,
    Component,
    Debug,
    Decode,
    Device,
    DType,
    Engine,
    Json,
    Layers,
    Licence,
    Pool,
    Precision,
    Preprocess,
    Root,
    Scratch,
    Split,
    WeightsFile,
)
from featurize.system import signals
from featurize.text import format_count, to_printable

app = make_app(
    "featurize", "Run a frozen convnet over an image collection, once, into a feature cache."
)


@app.command()
def run(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="A folder of images; tar shards, zips, Parquet or Arrow tables; a list; a URL.",
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="The cache to make or complete; D/ for parts.")
    ],
    backbone: Backbone = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="torchvision's name, a tag of timm's, or a .safetensors, .pth or .bin FILE.",
        ),
    ] = None,
    preprocess: Preprocess = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels a side for the network. [default: the weights' own]"),
    ] = None,
    layers: Layers = None,
    pool: Pool = None,
    dtype: DType = None,
    precision: Precision = None,
    engine: Engine = "auto",
    device: Device = "auto",
    decode: Decode = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print count, bytes and expected time; write nothing.")
    ] = False,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Exit 3 if more images than this failed.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try every failed image again.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every file, instead of trusting size and time.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Let more than a tenth of the rows go.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Only images whose path or name matches; may be repeated."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="No images that match, as masks/** or *_mask.png."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow links that lead out of IMAGES too.")
    ] = False,
    column: Column = None,
    split: Split = None,
    component: Component = None,
    root: Root = None,
    scratch: Scratch = None,
    part_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a part of -o D/, about. [default: 1,000,000]"),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="local|auto|HOST:PORT", help="Compute on a Ray cluster."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Networks at a time. [default: one a GPU, or machine]")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a feature cache of IMAGES, or complete one. What is done is never done again."""
    with handle_errors(debug, as_json):
        from featurize.cli.progress import ProgressDisplay
        from featurize.extraction.dry_run import Estimate
        from featurize.extraction.run import run as run_job

        with ProgressDisplay("listing images, loading the network") as display:
            result = run_job(
                images if len(images) > 1 else images[0],
                output,
                backbone=backbone,
                weights=weights,
                layers=layers,
                pool=pool,
                dtype=dtype,
                precision=precision,
                decode=decode,
                preprocess=preprocess,
                size=size,
                engine=engine,
                device=device,
                dry_run=dry_run,
                retry_failed=retry_failed,
                rehash=rehash,
                prune=prune,
                include=include or None,
                exclude=exclude or None,
                follow=follow,
                column=column,
                split=split,
                component=component,
                root=root,
                scratch=scratch,
                part_rows=part_rows,
                cluster=cluster,
                actors=actors,
                report=display.report,
                say=display.say,
            )
        if as_json:
            print_json(result.to_dict())
        elif isinstance(result, Estimate):
            _show_estimate(result)
        else:
            _show_summary(result)
        if isinstance(result, Estimate) or max_errors is None or result.failed <= max_errors:
            return
        failed = f"{result.failed:,} image{'s' * (result.failed > 1)} failed"
        print_stderr(f"error: {failed}, more than --max-errors {max_errors}")
        raise typer.Exit(EXIT_INCOMPLETE)


def _show_estimate(estimate: Any) -> None:
    from featurize.text import format_bytes, format_duration

    print(f"{estimate.rows:,} images, {estimate.to_compute:,} of them to compute")
    layers = ", ".join(estimate.layers)
    print(f"{to_printable(estimate.cache)}: {format_bytes(estimate.bytes)}, layers {layers}")
    if estimate.to_compute:
        rate = f"{estimate.images_per_second:,.0f} images/s"
        print(f"about {format_duration(estimate.seconds)} at {rate}")


def _show_summary(summary: Any) -> None:
    from featurize.cli.info import MAX_SHOWN_FAILURES
    from featurize.text import format_duration

    if summary.failures:
        print(f"{summary.failed:,} failed:")
        for path, reason in list(summary.failures.items())[:MAX_SHOWN_FAILURES]:
            print(f"  {to_printable(path)}: {reason}")
        if summary.failed > MAX_SHOWN_FAILURES:
            print(f"  ... `featurize info {summary.cache} --json` lists them all")
    print(
        f"{summary.cache}: {summary.rows:,} rows; {summary.computed:,} computed, "
        f"{summary.reused:,} reused, {summary.failed:,} failed, "
        f"in {format_duration(summary.seconds)}"
    )
    if summary.computed:
        print(
            f"{summary.computed:,} images went through the network, once each, "
            f"at {summary.images_per_second:,.0f} images/s. "
            f"Engine {summary.engine}: {summary.engine_why}."
        )
    print(summary.verdict)


@app.command()
def layers(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            autocompletion=complete_word(list_backbones),
            help="A network by name.",
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where a network can be cut, and what each cut costs on this machine."""
    with handle_errors(debug, as_json):
        signals.import_uninterrupted("torchvision")
        from featurize.backbones.load import load_backbone
        from featurize.backbones.profiling import layer_costs

        print_stderr(f"measuring {backbone} on this machine ...")
        costs = layer_costs(load_backbone(backbone, frozen_weights=False))
        if as_json:
            print_json({"layers": [layer.to_dict() for layer in costs]})
            return
        shown = [layer for layer in costs if layer.layer.count(".") < 2]
        width = max(len(layer.layer) for layer in shown)
        print(f"{'layer':{width}}  {'shape':>14} {'dim':>6}  {'time':>5}  {'arithmetic':>10}")
        for layer in shown:
            shape = "x".join(map(str, layer.shape))
            print(
                f"{layer.layer:{width}}  {shape:>14} {layer.dim:>6}  "
                f"{layer.cost:>5.0%}  {layer.macs:>10.0%}"
            )
        if len(shown) < len(costs):
            print(f"{len(costs) - len(shown)} deeper names are left out; --json lists all")


@app.command()
def backbones(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="As 'timm:*dinov2*': search timm too.")
    ] = None,
    licence: Licence = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the backbones there are, or search them by name and licence of the weights."""
    with handle_errors(debug, as_json):
        signals.import_uninterrupted("torchvision")
        from featurize.cli.backbones import find_backbones, show_backbones

        entries = find_backbones(pattern, licence)
        if as_json:
            print_json({"backbones": entries})
        else:
            show_backbones(entries, pattern)


@app.command()
def info(cache: CacheFile, as_json: Json = False, debug: Debug = False) -> None:
    """Say what is in a cache, without reading its features."""
    with handle_errors(debug, as_json):
        from featurize.cli.info import describe_cache, open_made_parts, show_cache

        opened = open_made_parts(cache)
        if as_json:
            print_json(describe_cache(opened))
        else:
            show_cache(opened)


@app.command()
def verify(
    cache: CacheFile,
    images: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGES]", help="Its images: hashed again, a sample embedded."),
    ] = None,
    weights: WeightsFile = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="If sound, add checksums to rows that have none.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a cache against its specification and, with IMAGES, against them."""
    with handle_errors(debug, as_json):
        from featurize.cache.reader import FeatureCache
        from featurize.extraction.verify import verify as check

        problems = check(cache, images, weights=weights, fill=fill)
        n_unchecked = 0 if problems else FeatureCache(cache).unchecked_rows
        if n_unchecked:
            subject = "row has" if n_unchecked == 1 else "rows have"
            print_stderr(
                f"{n_unchecked:,} {subject} no checksum, from before format 1.1; --fill makes them "
                "of the numbers as they stand"
            )
        if as_json:
            print_json({"ok": not problems, "problems": problems})
        else:
            for problem in problems:
                print(to_printable(problem))
            result = format_count(len(problems), "problem") if problems else "sound"
            print(f"{to_printable(str(cache))}: {result}")
        if problems:
            raise typer.Exit(EXIT_WRONG_INPUT)


@app.command()
def export(
    cache: CacheFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .npz or .parquet file.")],
    layers: CachedLayers = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hand the features to anything else, as .npz or .parquet."""
    with handle_errors(debug, as_json):
        from featurize.extraction.export import export as write

        rows = write(cache, output, layers.split(",") if layers else None)
        if as_json:
            print_json({"output": str(output), "rows": rows})
        else:
            print(f"{to_printable(str(output))}: {rows:,} rows")


@app.command()
def join(
    parts: Annotated[
        Path, typer.Argument(metavar="D/", help="A cache of parts, made by `featurize run -o D/`.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one file of a cache of parts, with all rows as they are."""
    with handle_errors(debug, as_json):
        from featurize.cli.progress import ProgressDisplay
        from featurize.extraction.joining.join import join as join_parts

        with ProgressDisplay("reading parts") as display:
            summary = join_parts(parts, output, report=display.report, say=display.say)
        if as_json:
            print_json(summary.to_dict())
        else:
            print(f"{to_printable(summary.cache)}: {summary.rows:,} rows")


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what is installed here and what is missing, and embed some images as a test.

    Exits with 0 if all is well, 3 if an extra is broken and the rest works, 1 if Headgraft does not
    work here. A missing extra is no fault.
    """
    with handle_errors(debug, as_json):
        from featurize.cli.doctor import show_diagnosis
        from featurize.cli.progress import ProgressDisplay
        from featurize.diagnosis.diagnose import diagnose

        with ProgressDisplay("importing packages") as display:
            diagnosis = diagnose(report=display.report)
        if as_json:
            print_json(diagnosis.to_dict())
        else:
            show_diagnosis(diagnosis)
        if diagnosis.problems:
            raise typer.Exit(EXIT_INCOMPLETE if diagnosis.works else EXIT_UNEXPECTED)
