"""`docs/plugins/` is what the plugins say of themselves today."""

from __future__ import annotations

import importlib.util

from blocks import ROOT


def test_the_pages_of_the_plugins_are_those_that_make_docs_would_write() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    wanted = generate.pages()
    found = {path.name: path.read_text("utf-8") for path in (ROOT / "docs" / "plugins").glob("*")}
    assert sorted(found) == sorted(wanted), "pages are missing, or of plugins that are no more: run `make docs`"
    stale = [name for name, text in wanted.items() if found[name] != text]
    assert not stale, f"{stale} are stale: run `make docs`"
