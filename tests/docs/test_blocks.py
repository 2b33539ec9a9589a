"""Every code block of the README and the documentation is tried: a block that cannot be tried must not exist."""

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

# Its plugins exist only once it has been followed: `test_write_a_plugin.py` does that.
WALKED = ROOT / "docs" / "write-a-plugin.md"
# Pages whose Python runs in a test of their own, which looks at what it shows.
RUN_ELSEWHERE = (ROOT / "README.md", WALKED)
PYTHON = [page for page in PAGES if page not in RUN_ELSEWHERE and blocks(page, "python")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_are_of_known_languages_and_mean_something(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language or 'no language'} cannot be tried"
        if block.language == "toml":
            check_toml(block, resolve=page != WALKED)
        if block.language == "json":
            json.loads(block.text)
        for line in lines(block) if block.language == "sh" else ():
            check_command(line, resolve=page != WALKED)


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(block.text for block in blocks(page, "python"))
    run_python(shortened(code, SHORTER_PYTHON), tmp_path, "page.py")


def test_links_between_pages_lead_somewhere() -> None:

    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"
