"""Carry out the reliability campaign, and write `docs/reliability.md` from its records.

`python -m tests.reliability` (or `make torture`) needs a POSIX system and about half an hour on two cores. A row that
has passed is not repeated without `--again`; `--row N` carries out some, `--table` only writes the table.
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
from tests.reliability.rows import RECORDS, ROWS, Room, carried_out, read_records, record_path

TABLE = Path("docs/reliability.md")
HEAD = """# Reliability

What was tried to break MetaForge, and what came of it: written by `make torture` from the records in
`benchmarks/records/reliability`, which also have the machine of each row and more figures. A short selection of every
row runs in `make test`.

| # | test | goal | measured | passed |
|---|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what is missing, then write the table; the exit code is 1 where a row has no record or not passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--row", type=int, action="append", metavar="N", help="carry out this one (may be repeated)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for all rows together (default 60)")
    parser.add_argument("--again", action="store_true", help="carry out rows that have passed, too")
    parser.add_argument("--table", action="store_true", help="carry out nothing, only write the table")
    chosen = parser.parse_args(arguments)
    find_rows()
    if unknown := sorted(set(chosen.row or ()) - ROWS.keys()):
        parser.error(f"there is no row {unknown[0]}; the rows are {', '.join(map(str, sorted(ROWS)))}")
    deadline = time.monotonic() + 60 * chosen.minutes
    for number in [] if chosen.table else sorted(chosen.row or ROWS):
        if time.monotonic() > deadline:
            tell("Time is up: the next call goes on with the rows that have not passed.")
            break
        if chosen.again or not has_passed(number):
            carry_out(number, deadline)
    records = read_records()
    TABLE.write_text(HEAD + "".join(line(record) for record in records), "utf-8")
    if missing := sorted(ROWS.keys() - {record["row"] for record in records}):
        tell(f"Rows without a record: {', '.join(map(str, missing))}")
    return int(bool(missing) or not all(record["passed"] for record in records))


def find_rows() -> None:
    """Import every module of rows."""
    for module in pkgutil.iter_modules(reliability.__path__, f"{reliability.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def has_passed(number: int) -> bool:
    """Return whether a row has a record that it has passed."""
    path = record_path(number)
    return path.is_file() and bool(json.loads(path.read_text("utf-8"))["passed"])


def carry_out(number: int, deadline: float) -> None:
    """Carry out a row in a folder of its own, and keep its record."""
    tell(f"row {number}: {ROWS[number].test}")
    command = shlex.join(["python", "-m", reliability.__name__, "--row", str(number), "--again"])
    with tempfile.TemporaryDirectory(prefix=f"row-{number}-", ignore_cleanup_errors=True) as folder:
        record = carried_out(ROWS[number], Room(Path(folder), deadline), command)
    RECORDS.mkdir(parents=True, exist_ok=True)
    record_path(number).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    tell(f"  {'passed' if record['passed'] else 'NOT PASSED'}, {record['seconds']} s: {record['measured']['text']}")


def line(record: Mapping[str, Any]) -> str:
    """Return the line of the table for a record."""
    passed = "yes" if record["passed"] else "**no**"
    cells = [str(record["row"]), record["test"], record["goal"], record["measured"]["text"], passed]
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |\n"


def tell(text: str) -> None:
    """Say how far the campaign is."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
