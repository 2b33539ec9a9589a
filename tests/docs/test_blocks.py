"""Every code block of the README and the documentation is tested; a block of an unknown language fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from blocks import (
    LANGUAGES,
    PAGES,
    ROOT,
    SHORTER_PYTHON,
    blocks,
    check_command,
    check_toml,
    lines,
    run_python,
    shortened,
)

# The plugins of this page are not installed here. `test_write_a_plugin.py` writes and installs them.
TUTORIAL = ROOT / "docs" / "write-a-plugin.md"
# Pages whose Python runs in another test, which also checks its output.
RUN_ELSEWHERE = (ROOT / "README.md", TUTORIAL)
PYTHON = [page for page in PAGES if page not in RUN_ELSEWHERE and blocks(page, "python")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_is_valid(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, (
            f"{block.place}: {block.language or 'no language'} is not a language that the tests can check"
        )
        if block.language == "toml":
            check_toml(block, resolve=page != TUTORIAL)
        if block.language == "json":
            json.loads(block.text)
        for line in lines(block) if block.language == "sh" else ():
            check_command(line, resolve=page != TUTORIAL)


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(block.text for block in blocks(page, "python"))
    run_python(shortened(code, SHORTER_PYTHON), tmp_path, "page.py")


def test_links_between_pages_lead_to_existing_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
