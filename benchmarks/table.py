"""Print a table as Markdown, and keep it as JSON for `bench.py`."""

import json
import sys
from pathlib import Path

Row = dict[str, object]
KEPT = Path(__file__).parents[1] / "build" / "bench" / "tables"


def show(title: str, rows: list[Row], limit: str = "") -> None:
    """Show a table, with what it is measured against."""
    print(f"\n### {title}\n")
    if limit:
        print(f"{limit}\n")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "|".join("---" if k == 0 else "---:" for k in range(len(columns))) + "|")
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    sys.stdout.flush()
    KEPT.mkdir(parents=True, exist_ok=True)
    file = KEPT / f"{Path(sys.argv[0]).stem}.json"
    tables = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*tables, {"title": title, "limit": limit, "rows": rows}]))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
