"""Untrusted texts in Markdown have no effect on the page around them."""

from __future__ import annotations

import pytest

from metaforge.results.markdown import code_block, code_span, inline, line, picture


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("instance_1 of 5-way", "instance_1 of 5-way"),
        ("0.1 -> 0.2", "0.1 -> 0.2"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("a & b &lt;", "a &amp; b &amp;lt;"),
        ("a | b", "a \\| b"),
        ("`rm`", "\\`rm\\`"),
        ("a\\|b", "a\\\\\\|b"),
        ("two\n# lines", "two # lines"),
        ("red \x1b[31m bell \x07 csi \x9b bidi \u202e.", "red [31m bell csi bidi ."),
        ("[x](javascript:alert(1)) ![y][z]", "[x\\](javascript:alert(1)) ![y\\][z]"),
        ("98.7 [1]", "98.7 [1]"),
    ],
)
def test_a_text_inside_a_line_is_inert(text: str, expected: str) -> None:
    assert inline(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# heading", "\\# heading"),
        ("\n\n# heading", "\\# heading"),
        ("- item", "\\- item"),
        ("--- rule", "\\--- rule"),
        ("> quoted", "\\> quoted"),
        ("~~~", "\\~~~"),
        ("12. item", "12\\. item"),
        ("1000 tasks", "1000 tasks"),
        ("[x]: http://example.org", "[x\\]: http://example.org"),
        ("a sentence", "a sentence"),
    ],
)
def test_a_text_at_the_start_of_a_line_begins_nothing(text: str, expected: str) -> None:
    assert line(text) == expected


def test_a_block_of_code_has_a_fence_that_the_text_does_not_close() -> None:
    assert code_block("metaforge train", "sh") == "```sh\nmetaforge train\n```"
    assert code_block("a\n````\n# evil\x1b") == "`````\na\n````\n# evil \n`````"
    assert code_span("run `x` \x1b[2J") == "`run 'x'  [2J`"


def test_the_name_of_a_picture_is_quoted_in_its_address() -> None:
    assert picture("training", "pictures/training.png") == "![training](pictures/training.png)"
    assert picture("a](b", "pictures/a](b) <c>.png") == "![a)(b](pictures/a%5D%28b%29%20%3Cc%3E.png)"
