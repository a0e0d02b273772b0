"""Write docs/cli.md from the commands' own --help."""

import os
import subprocess
import sys
from pathlib import Path

VERBS = {
    "featurize": ["run", "layers", "backbones", "info", "verify", "export", "join", "doctor"],
    "classify": [
        "fit",
        "compare",
        "zeroshot",
        "advise",
        "finetune",
        "auto",
        "evaluate",
        "predict",
        "report",
    ],
}
INTRODUCTION = """# Commands

Two commands with a few verbs each. `featurize` makes feature caches, `classify` trains heads on
them. This page is what each verb prints with `--help`.

- `C.h5` is a feature cache, `H` a saved head, `T.csv` a label table, `M` a network with its head.
- `[required]` options have to be given. What stands after *default* is taken if you say nothing.
- With `--json` a verb prints one JSON object on standard output. The rest goes to standard error.

| exit code | what it means | what to do |
|---|---|---|
| 0 | done | |
| 2 | the call or the input is wrong | do what the message says |
| 3 | incomplete; or images failed: more than `--max-errors`, or one in `predict` | run it again |
| 1 | something unexpected | run it with `--debug`, and report it |

After 3 a verb goes on where it was. Images that failed are listed; another run does not mend them.
"""


def page() -> str:
    """Every verb's help, as Markdown."""
    text = INTRODUCTION
    for command, verbs in VERBS.items():
        text += f"\n## {command}\n"
        for verb in verbs:
            text += f"\n### {command} {verb}\n\n```\n{_help(command, verb)}\n```\n"
    return text


def _help(command: str, verb: str) -> str:
    program = Path(sys.executable).with_name(command)
    plain = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, verb, "--help"], capture_output=True, text=True, check=True, env=plain
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page())
