"""The command `featurize`: thin verbs over the package's functions."""

from pathlib import Path
from typing import Annotated, Any

import typer

from featurize.cli.console import (
    EXIT_DONE,
    EXIT_INCOMPLETE,
    EXIT_WRONG_INPUT,
    print_json,
    print_stderr,
    run_command,
)
from featurize.system import signals
from featurize.text import to_printable

MAX_SHOWN_FAILURES = 20

app = typer.Typer(
    name="featurize",
    help="Run a frozen convnet over an image collection, once, into a feature cache.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
CacheFile = Annotated[Path, typer.Argument(metavar="C.h5", help="A feature cache.")]


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"featurize (headgraft) {version('headgraft')}")
        raise typer.Exit


@app.callback()
def _handle_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The cache to make or complete.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="A torchvision network, `seedling`, or a FILE. [default: resnet50]"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="torchvision's name, or a .safetensors or .pth FILE.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(help="Preprocessing of a weights name, or from a .json FILE.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="last, auto, or names: layer3,layer4:max. [default: last]")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="avg, max, avgmax, none or token. [default: avg]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Stored as float32 or float16. [default: float32]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Computed in float32, tf32, bf16, fp16. [default: float32]")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, onnxruntime or cuda.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    decode: Annotated[
        str | None, typer.Option(help="exact, or fast for large JPEGs. [default: exact]")
    ] = None,
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a feature cache of IMAGES, or complete one. What is done is never done again."""

    def work() -> int:
        from featurize.cli.progress import ProgressLine
        from featurize.extraction.dry_run import Estimate
        from featurize.extraction.run import run as run_job

        live = ProgressLine()
        try:
            result = run_job(
                images,
                output,
                backbone=backbone,
                weights=weights,
                layers=layers,
                pool=pool,
                dtype=dtype,
                precision=precision,
                decode=decode,
                preprocess=preprocess,
                engine=engine,
                device=device,
                dry_run=dry_run,
                retry_failed=retry_failed,
                rehash=rehash,
                prune=prune,
                include=include or None,
                exclude=exclude or None,
                follow=follow,
                report=live,
                say=live.print_line,
            )
        finally:
            live.clear()
        if as_json:
            print_json(result.to_dict())
        elif isinstance(result, Estimate):
            _show_estimate(result)
        else:
            _show_summary(result)
        if isinstance(result, Estimate) or max_errors is None or result.failed <= max_errors:
            return EXIT_DONE
        print_stderr(f"error: {result.failed} images failed, more than --max-errors {max_errors}")
        return EXIT_INCOMPLETE

    run_command(work, debug, as_json)


def _show_estimate(estimate: Any) -> None:
    from featurize.text import format_bytes, format_duration

    print(f"{estimate.rows:,} images, {estimate.to_compute:,} of them to compute")
    print(
        f"{to_printable(estimate.cache)}: {format_bytes(estimate.bytes)}, layers {', '.join(estimate.layers)}"
    )
    if estimate.to_compute:
        print(
            f"about {format_duration(estimate.seconds)} at {estimate.images_per_second:,.0f} images/s"
        )


def _show_summary(summary: Any) -> None:
    from featurize.text import format_duration

    if summary.failures:
        print(f"{summary.failed:,} failed:")
        for path, reason in list(summary.failures.items())[:MAX_SHOWN_FAILURES]:
            print(f"  {to_printable(path)}: {reason}")
        if summary.failed > MAX_SHOWN_FAILURES:
            print(f"  ... `featurize info {summary.cache} --json` lists them all")
    print(
        f"{summary.cache}: {summary.rows:,} rows; {summary.computed:,} computed, {summary.reused:,} reused, "
        f"{summary.failed:,} failed, in {format_duration(summary.seconds)}"
    )
    if summary.computed:
        print(
            f"{summary.computed:,} images went through the network, once each, "
            f"at {summary.images_per_second:,.0f} images/s. Engine {summary.engine}: {summary.engine_why}."
        )
    print(summary.verdict)


@app.command()
def layers(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="A network by name.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show where a network can be cut, and what each cut costs on this machine."""

    def work() -> int:
        signals.import_uninterrupted("torchvision")
        from featurize.backbones.backbone import load_backbone
        from featurize.backbones.profiling import layer_costs

        print_stderr(f"measuring {backbone} on this machine ...")
        found = layer_costs(load_backbone(backbone, frozen_weights=False))
        if as_json:
            print_json({"layers": [layer.to_dict() for layer in found]})
            return EXIT_DONE
        shown = [layer for layer in found if layer.layer.count(".") < 2]
        width = max(len(layer.layer) for layer in shown)
        print(f"{'layer':{width}}  {'shape':>14} {'dim':>6}  {'time':>5}  {'arithmetic':>10}")
        for layer in shown:
            shape = "x".join(map(str, layer.shape))
            print(
                f"{layer.layer:{width}}  {shape:>14} {layer.dim:>6}  "
                f"{layer.cost:>5.0%}  {layer.macs:>10.0%}"
            )
        if len(shown) < len(found):
            print(f"{len(found) - len(shown)} deeper names are left out; --json lists all")
        return EXIT_DONE

    run_command(work, debug, as_json)


@app.command()
def backbones(as_json: Json = False, debug: Debug = False) -> None:
    """List the backbones there are."""

    def work() -> int:
        signals.import_uninterrupted("torchvision")
        from featurize.backbones.backbone import list_backbones, list_weights
        from featurize.backbones.families import EMBEDDING_DIMS

        found: list[dict[str, Any]] = [
            {
                "name": name,
                "weights": list_weights(name),
                "dim": EMBEDDING_DIMS.get(name),
                "source": "shipped inside" if name == "seedling" else "torchvision",
            }
            for name in list_backbones()
        ]
        if as_json:
            print_json({"backbones": found})
            return EXIT_DONE
        for entry in found:
            dim = entry["dim"] or "?"
            print(
                f"{entry['name']:20} {dim:>5}  {entry['source']:14}  {' '.join(entry['weights'])}"
            )
        return EXIT_DONE

    run_command(work, debug, as_json)


@app.command()
def info(cache: CacheFile, as_json: Json = False, debug: Debug = False) -> None:
    """Say what is in a cache, without reading its features."""

    def work() -> int:
        from featurize.cache.reader import FeatureCache

        found = FeatureCache(cache)
        status, made, failures = found.counts, found.extractor, found.failures
        listed = [
            {
                "name": layer.name,
                "layer": layer.layer,
                "pool": layer.pool,
                "dim": layer.dim,
                "dtype": "float32" if layer.dtype == "<f4" else "float16",
                "map_shape": list(layer.map_shape),
                "fingerprint": layer.fingerprint,
            }
            for layer in found.layers.values()
        ]
        if as_json:
            print_json(
                {
                    "cache": str(cache),
                    "format_version": found.format_version,
                    "rows": found.n_rows,
                    "status": status,
                    "include": list(found.include),
                    "exclude": list(found.exclude),
                    "backbone": made.backbone,
                    "weights": made.weights,
                    "weights_sha256": made.weights_sha256,
                    "preprocess": made.preprocess.to_dict(),
                    "precision": made.precision,
                    "layers": listed,
                    "failures": failures,
                }
            )
            return EXIT_DONE
        print(f"{to_printable(str(cache))}: feature cache, format {found.format_version}")
        print(f"rows      {found.n_rows:,}: " + ", ".join(f"{v:,} {k}" for k, v in status.items()))
        weights = (
            f"weights {to_printable(made.weights)} ({to_printable(made.weights_sha256[:12])}...)"
        )
        print(f"backbone  {to_printable(made.backbone)}, {weights}")
        print(f"images    shorter side to {made.preprocess.resize}, centre {made.preprocess.crop}")
        for word, patterns in (("include", found.include), ("exclude", found.exclude)):
            for pattern in patterns:
                print(f"{word}   {to_printable(pattern)}")
        for layer in found.layers.values():
            shape = "x".join(map(str, layer.map_shape))
            pooled = f"{layer.dim} numbers from {shape}, pool {to_printable(layer.pool)}"
            print(f"layer     {to_printable(layer.name)}: {pooled}")
        for path, reason in list(failures.items())[:MAX_SHOWN_FAILURES]:
            print(f"failed    {to_printable(path)}: {reason}")
        return EXIT_DONE

    run_command(work, debug, as_json)


@app.command()
def verify(
    cache: CacheFile,
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGES]", help="Its images: hashed again, a sample embedded."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Where the weights FILE is now.")] = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="If sound, add checksums to rows that have none.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a cache against its specification and, with IMAGES, against them."""

    def work() -> int:
        from featurize.cache.reader import FeatureCache
        from featurize.extraction.verify import verify as check

        problems = check(cache, images, weights=weights, fill=fill)
        lacking = 0 if problems else FeatureCache(cache).unchecked_rows
        if lacking:
            have = "row has" if lacking == 1 else "rows have"
            print_stderr(
                f"{lacking:,} {have} no checksum, from before format 1.1; --fill makes them of the "
                "numbers as they stand"
            )
        if as_json:
            print_json({"ok": not problems, "problems": problems})
        else:
            for problem in problems:
                print(to_printable(problem))
            found = f"{len(problems)} problems" if problems else "sound"
            print(f"{to_printable(str(cache))}: {found}")
        return EXIT_WRONG_INPUT if problems else EXIT_DONE

    run_command(work, debug, as_json)


@app.command()
def export(
    cache: CacheFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .npz or .parquet file.")],
    layers: Annotated[str | None, typer.Option(help="Layers to take. [default: all]")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hand the features to anything else, as .npz or .parquet."""

    def work() -> int:
        from featurize.extraction.export import export as write

        rows = write(cache, output, layers.split(",") if layers else None)
        if as_json:
            print_json({"output": str(output), "rows": rows})
        else:
            print(f"{to_printable(str(output))}: {rows:,} rows")
        return EXIT_DONE

    run_command(work, debug, as_json)
