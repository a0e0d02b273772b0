"""Write the tables of docs/ that benchmarks make: `python docs/make_tables.py`.

A table stands between `<!-- table: PART -->` and `<!-- end of table -->`, and is made from the
part of that name in benchmarks/results.json.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results.json"
PLACE = re.compile(r"(<!-- table: (\w+) (\d+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
Results = dict[str, dict[str, Any]]


def fill(page: str, results: Results) -> str:
    """A page with its tables as they are now."""

    def made(found: re.Match[str]) -> str:
        opening, part, number, closing = found.groups()
        result = results[part]
        table = _table(result["tables"][int(number)])
        return f"{opening}\n{table}\n{_source(part, result)}\n\n{closing}"

    return PLACE.sub(made, page)


def pages() -> Iterator[Path]:
    """The pages that have such a table."""
    return (path for path in sorted(DOCS.rglob("*.md")) if PLACE.search(path.read_text()))


def _table(table: dict[str, Any]) -> str:
    rows = table["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numbers = {c for c in columns if all(not isinstance(row.get(c), str) for row in rows)}
    lines = [f"| {' | '.join(columns)} |", ""]
    lines[1] = f"|{'|'.join('---:' if column in numbers else '---' for column in columns)}|"
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _source(part: str, result: dict[str, Any]) -> str:
    machine = str(result["output"]).splitlines()[0]
    return f"`python benchmarks/bench.py {part}`, {result['day']}, on {machine}."


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    results = json.loads(RESULTS.read_text())
    for path in pages():
        path.write_text(fill(path.read_text(), results))


if __name__ == "__main__":
    main()
