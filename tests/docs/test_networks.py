"""`docs/networks.md` is what its program writes from the record, and no network in it differs from plain PyTorch."""

from __future__ import annotations

import json

from benchmarks.networks import GROUPS, PAGE, RECORD, page

DATA = json.loads(RECORD.read_text("utf-8"))


def test_the_page_is_written_from_the_record() -> None:
    assert PAGE.read_text("utf-8") == page(DATA)


def test_every_network_of_the_zoo_was_compared_and_none_differs() -> None:
    assert DATA.keys() == {name for entries in GROUPS.values() for name in entries}
    for name, found in DATA.items():
        assert {result["status"] for result in found.values()} <= {"equal", "refused"}, name
