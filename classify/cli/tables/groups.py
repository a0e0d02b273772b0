"""Proposed groups for stdout."""

import shlex

from classify.experiments.grouping.propose import GroupProposal
from featurize.cli.console import make_console, make_text


def show_groups(proposal: GroupProposal, cache: str, output: str) -> None:
    """Print what each rule found, and accuracy with and without the groups.

    Parameters
    ----------
    proposal : GroupProposal
    cache, output : str
        The cache, and the file of the groups.
    """
    console = make_console(stderr=False)
    n = len(proposal.paths)
    if proposal.n_groups:
        found = f"{proposal.n_grouped:,} of {n:,} images in {proposal.n_groups:,} groups"
    else:
        found = f"no groups among {n:,} images"
    console.print(make_text(found, "bold"))
    for rule in proposal.rules:
        mark = "+" if rule.is_used else "-"
        console.print(make_text(f"{mark} {rule.describe()}"))
    if not proposal.rules:
        console.print("Neither names nor features link any images.")
    if proposal.n_groups and proposal.accuracy_before is not None:
        before = _format(proposal.accuracy_before, proposal.accuracy_before_ci)
        after = _format(proposal.accuracy_after, proposal.accuracy_after_ci)
        console.print(make_text(f"accuracy of a quick head: {before} on a split that tears groups"))
        console.print(make_text(f"                          {after} on one that keeps them whole"))
    console.print(make_text(f"the groups are in {output}"))
    if proposal.n_groups and proposal.labels is not None:
        command = shlex.join(["classify", "compare", cache, "--labels", output])
        console.print(make_text(f"  {command}"), soft_wrap=True)


def _format(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
