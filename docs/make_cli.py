"""Write docs/cli.md from the commands' own --help."""

import os
import subprocess
import sys
from pathlib import Path

VERBS = {
    "featurize": ["run", "layers", "backbones", "info", "verify", "export", "doctor"],
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


def page() -> str:
    """Every verb's help, as Markdown."""
    text = "# Commands\n\nMade by `make docs` from the commands' own `--help`.\n"
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
