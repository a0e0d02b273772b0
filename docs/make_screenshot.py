"""Take the README's picture of a report: `make demo`, then `python docs/make_screenshot.py`.

Opens build/photographs.html in a headless Chromium, and crops the leaderboard, the accuracy by
layer and the worst mistakes into docs/pictures/report.png. The patches in it are cut from the two
photographs that scikit-learn ships (china.jpg and flower.jpg, CC BY; docs/gallery.md names them).
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "build" / "photographs.html"
PICTURE = ROOT / "docs" / "pictures" / "report.png"
WIDTH, HEIGHT = 1120, 1500  # pixels of the window
TOP, BOTTOM = 358, 1292  # pixels: leaderboard to the first row of mistakes


def take_screenshot(page: Path, target: Path) -> None:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        raise SystemExit("no Chromium on PATH to open the report in")
    with tempfile.TemporaryDirectory() as profile:
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--virtual-time-budget=8000", f"--user-data-dir={profile}"),
            *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={target}"),
        ]
        subprocess.run(
            [program, *options, page.as_uri()], check=True, timeout=120, stderr=subprocess.DEVNULL
        )


def main() -> None:
    if not REPORT.exists():
        raise SystemExit(f"there is no {REPORT}: run `make demo` first")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.png"
        take_screenshot(REPORT, whole)
        with Image.open(whole) as image:
            crop = image.convert("RGB").crop((0, TOP, WIDTH, BOTTOM))
    crop.save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
