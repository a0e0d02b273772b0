"""Run benchmarks, all or those named, and write what they print to RESULTS.md and results.json.

    python benchmarks/bench.py [PART ...]

A part that is not run keeps the result it has.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from table import KEPT

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PARTS = (
    *("startup", "decoding", "engines", "end_to_end", "cut_saving", "growth", "reading"),
    *("c_path", "further_task", "million_rows", "many_classes", "coverage"),
    *("near_copies", "small_tasks", "calibration", "kernels_and_neighbours", "label_issues"),
    *("timm_script", "timm_families", "compare_backbones", "which_backbone", "label_sets"),
    *("sources", "cluster", "scale", "parts_growth", "ceiling", "overlap", "decode_modes"),
    "doubt",
    "many_labels",
)


def result_of(part: str) -> dict[str, object]:
    """Run one part; its output passes through."""
    script = HERE / f"{part}.py"
    tables = KEPT / f"{part}.json"
    tables.unlink(missing_ok=True)
    start = time.perf_counter()
    lines = []
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as work:
        for line in work.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if work.returncode:
        raise SystemExit(f"{script.name} failed")
    return {
        "about": script.read_text().split('"""')[1].strip(),
        "day": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - start),
        "output": "".join(lines).strip(),
        "tables": json.loads(tables.read_text()) if tables.exists() else [],
    }


def page(results: dict[str, dict[str, object]]) -> str:
    text = (
        "# Results\n\nMade by `make bench`; `make bench PART=engines` runs one part. Ratios within "
        "a run are what to keep: the machine is shared, and absolute figures come and go.\n"
    )
    for part in PARTS:
        if part not in results:
            continue
        found = results[part]
        output = str(found["output"])
        text += f"\n## {part}\n\n{found['about']}\n\n"
        if found["tables"]:  # Markdown already, but for the machine's lines at its head
            head, _, rest = output.partition("\n\n### ")
            text += f"```\n{head}\n```\n\n### {rest}\n"
        else:
            text += f"```\n{output}\n```\n"
        text += f"\n{found['day']}, {found['seconds']} s.\n"
    return text


def main() -> None:
    parts = sys.argv[1:] or PARTS
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts:
        results[part] = result_of(part)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        (HERE / "RESULTS.md").write_text(page(results))


if __name__ == "__main__":
    main()
