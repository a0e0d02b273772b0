"""The verb `classify groups`."""

from pathlib import Path
from typing import Annotated

import typer

from classify.cli.options import Column, Labels, LabelsLevel, Seed
from featurize.cli.console import handle_errors, print_json, show_notices
from featurize.cli.options import CacheFile, Debug, Json
from featurize.cli.progress import ProgressDisplay


def groups(
    cache: CacheFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="G.csv", help="The table path,label,group.")
    ],
    labels: Labels = None,
    column: Column = "label",
    labels_level: LabelsLevel = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Propose which images belong on one side of a split: copies, bursts, scenes, patients."""
    with handle_errors(debug, json):
        from classify.experiments.grouping.propose import check_groups_file, find_groups

        check_groups_file(output)
        with ProgressDisplay("reading the cache") as display:
            proposal = find_groups(
                cache,
                labels,
                column=column,
                labels_level=labels_level,
                seed=seed,
                say=display.begin,
            )
        proposal.write_csv(output)
        show_notices(proposal.notices)
        if json:
            print_json(proposal.to_dict() | {"output": str(output)})
        else:
            from classify.cli.tables.groups import show_groups

            show_groups(proposal, str(cache), str(output))
