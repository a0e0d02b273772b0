"""Environments for other packages: one each under build/, over this project's torch."""

import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENT = {"embetter": "embetter[vision]"}
MOST_SECONDS = 900
HOME = Path(__file__).parents[1] / "build" / "peers"


def python_of(package: str) -> Path | None:
    """The interpreter of a package's own environment, made once; None where it does not install."""
    import torch

    home = HOME / package
    python = home / "bin" / "python"
    if (home / "failed").exists():
        return None
    if not (home / "ready").exists():
        print(f"installing {package} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        # The same torch for all: theirs would be another five gigabytes each.
        inside = sysconfig.get_path("purelib", vars={"base": str(home)})
        (Path(inside) / "below.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        line = [python, "-m", "pip", "install", "--quiet", REQUIREMENT.get(package, package)]
        try:
            subprocess.run(list(map(str, line)), timeout=MOST_SECONDS, check=True)
            (home / "ready").touch()
        except subprocess.SubprocessError:
            (home / "failed").touch()
        return python_of(package)
    return python
