"""Run the reliability campaign, and write `docs/reliability.md` from its records.

`python -m tests.reliability` (or `make torture`) needs a POSIX system and about half an hour on two cores. It skips
rows that have passed, unless `--again` is given; `--row N` runs only that row, `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import reliability
from tests.reliability.rows import RECORDS, ROWS, Workspace, read_records, record_path, run_row

TABLE = Path("docs/reliability.md")
HEAD = """# Reliability

Each row is a campaign that tries to break MetaForge, with its goal and its result. `make torture` runs them all and
writes this page from the records in `benchmarks/records/reliability`; do not edit it. A record also holds the machine,
further numbers, and the command that repeats its row. `make test` runs every row with small counts. The words are
explained in the [glossary](glossary.md).

| # | test | goal | measured | passed |
|---|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that have not passed, then write the table; return 1 if a row has no record or has not passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--row", type=int, action="append", metavar="N", help="run only this row (may be repeated)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for all rows together (default 60)")
    parser.add_argument("--again", action="store_true", help="also run rows that have passed")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    options = parser.parse_args(arguments)
    import_rows()
    if unknown := sorted(set(options.row or ()) - ROWS.keys()):
        parser.error(f"there is no row {unknown[0]}; the rows are {', '.join(map(str, sorted(ROWS)))}")
    deadline = time.monotonic() + 60 * options.minutes
    for number in [] if options.table else sorted(options.row or ROWS):
        if time.monotonic() > deadline:
            log("The time is over. The next call runs the rows that have not passed.")
            break
        if options.again or not has_passed(number):
            run_and_record(number, deadline)
    records = read_records()
    TABLE.write_text(HEAD + "".join(table_line(record) for record in records), "utf-8")
    if missing := sorted(ROWS.keys() - {record["row"] for record in records}):
        log(f"Rows without a record: {', '.join(map(str, missing))}")
    return int(bool(missing) or not all(record["passed"] for record in records))


def import_rows() -> None:
    """Import every module of this package, which registers its rows."""
    for module in pkgutil.iter_modules(reliability.__path__, f"{reliability.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def has_passed(number: int) -> bool:
    """Return whether the record of a row says that it has passed."""
    path = record_path(number)
    return path.is_file() and bool(json.loads(path.read_text("utf-8"))["passed"])


def run_and_record(number: int, deadline: float) -> None:
    """Run a row in a temporary folder, and write its record."""
    log(f"row {number}: {ROWS[number].test}")
    command = shlex.join(["python", "-m", reliability.__name__, "--row", str(number), "--again"])
    with tempfile.TemporaryDirectory(prefix=f"row-{number}-", ignore_cleanup_errors=True) as folder:
        record = run_row(ROWS[number], Workspace(Path(folder), deadline), command)
    RECORDS.mkdir(parents=True, exist_ok=True)
    record_path(number).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    log(f"  {'passed' if record['passed'] else 'NOT PASSED'}, {record['seconds']} s: {record['measured']['text']}")


def table_line(record: Mapping[str, Any]) -> str:
    """Return the line of the table for a record."""
    passed = "yes" if record["passed"] else "**no**"
    cells = [str(record["row"]), record["test"], record["goal"], record["measured"]["text"], passed]
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |\n"


def log(text: str) -> None:
    """Print the progress of the campaign on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
