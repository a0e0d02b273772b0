"""Advice for several labels, numbers and grades, for stdout."""

from rich import box
from rich.table import Table

from classify.evaluation.targets.titles import format_metric_name
from classify.strategy.cut_cost import CutCost
from classify.strategy.strategies import DESCRIPTIONS
from classify.strategy.targets.advise import TargetAdvice, describe_advice
from featurize.cli.console import make_console, make_text


def show_target_advice(advice: TargetAdvice, saving: CutCost | None) -> None:
    """Print the advised strategy, the evidence, and the commands.

    Parameters
    ----------
    advice : TargetAdvice
    saving : CutCost, or None
        The cost of the truncated network, if it was measured.
    """
    console = make_console(stderr=False)
    console.print(make_text(f"{advice.task}: {advice.strategy}", "bold green"))
    console.print(make_text(f"{DESCRIPTIONS[advice.strategy]}; layer {advice.layer}"))
    console.print(make_text(describe_advice(advice)))
    title = format_metric_name(advice.metric)
    table = _new_table(f"{title} by depth, ridge", "layer", "depth")
    for score in advice.profile:
        table.add_row(
            "*" if score.layer == advice.layer else "",
            make_text(score.layer if score.depth is not None else "all joined"),
            "" if score.depth is None else f"{score.depth:.0%}",
            f"{score.value:.3f}",
            f"{score.ci[0]:.3f} to {score.ci[1]:.3f}",
        )
    console.print(table)
    curve = _new_table("Learning curve on the last layer", "images", "share")
    for point in advice.curve:
        interval = f"{point.ci[0]:.3f} to {point.ci[1]:.3f}"
        share = f"{point.fraction:.0%}"
        curve.add_row("", f"{point.n_images:,}", share, f"{point.value:.3f}", interval)
    console.print(curve)
    if saving is not None:
        console.print(
            make_text(
                f"Up to {saving.layer} the network takes {saving.time:.0%} of its time on this "
                f"machine, {saving.macs:.0%} of its arithmetic, and {saving.weights:.0%} of its "
                "bytes."
            )
        )
    for reason in advice.reasons:
        console.print(make_text(f"- {reason}."))
    for strategy, command in advice.commands.items():
        console.print()
        console.print(make_text(f"{strategy}: {DESCRIPTIONS[strategy]}", "bold"))
        # Do not wrap the command: it must remain one line to be pasted.
        console.print(make_text(f"  {command}"), soft_wrap=True)
    seconds = f"{advice.seconds:.1f} s"
    console.print(f"\nMeasured in {seconds}; no image was read, no forward pass made.", style="dim")


def _new_table(title: str, *headings: str) -> Table:
    table = Table(
        title=make_text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for heading in ("", headings[0]):
        table.add_column(heading, overflow="fold")
    for heading in (headings[1], "validation", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table
