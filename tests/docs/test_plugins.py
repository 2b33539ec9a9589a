"""The pages of `docs/plugins/` are up to date."""

from __future__ import annotations

import importlib.util

from blocks import ROOT


def test_the_pages_equal_those_that_make_docs_writes() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    expected = generate.pages()
    pages = {path.name: path.read_text("utf-8") for path in (ROOT / "docs" / "plugins").glob("*")}
    assert sorted(pages) == sorted(expected), (
        "pages are missing, or describe plugins that do not exist: run `make docs`"
    )
    stale = [name for name, text in expected.items() if pages[name] != text]
    assert not stale, f"{stale} are stale: run `make docs`"
