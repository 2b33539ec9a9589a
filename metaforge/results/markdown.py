"""Untrusted texts in Markdown: names, notes and commands of a run folder, without effect on the page around them.

Everything that a page quotes from a record, a folder name or a command goes through one of these functions.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from metaforge.errors import printable

# The characters that begin HTML, code, a cell of a table or another escape, with what is written in their place. The
# one that ends HTML is inert where none can begin.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "\\|", "`": "\\`", "\\": "\\\\"})
# A bracket after which a link, or the definition of one, would begin.
_LINK = re.compile(r"\](?=\s*[(\[:])")
# What at the start of a line begins a heading, a list, a rule, a quotation or a fence.
_BLOCK = re.compile(r"([#+\-*=_~>]|\d+(?=[.)]))")


def inline(text: str) -> str:
    """Return a text in one line, for the inside of a line: control characters and the syntax of Markdown are inert.

    Example:
        >>> from metaforge.results.markdown import inline
        >>> inline("5 < 6 | <script>")
        '5 &lt; 6 \\\\| &lt;script>'
    """
    return _LINK.sub(r"\\]", " ".join(printable(text).split()).translate(_ESCAPES))


def line(text: str) -> str:
    """Return a text in one line, for the start of a line or of a quotation: it begins no heading and no list."""
    escaped = inline(text)
    match = _BLOCK.match(escaped)
    if match is None:
        return escaped
    # A number begins a list only with the dot or the bracket after it, which is what is escaped.
    position = match.end() if match.group().isdecimal() else 0
    return f"{escaped[:position]}\\{escaped[position:]}"


def code_block(text: str, language: str = "") -> str:
    """Return a text as a fenced block of code, with a fence that is longer than any in the text."""
    lines = [printable(part) for part in text.split("\n")]
    fence = "`" * max(3, 1 + max((len(run) for part in lines for run in re.findall("`+", part)), default=0))
    return "\n".join([fence + language, *lines, fence])


def code_span(text: str) -> str:
    """Return a text as code inside a line; a backtick in it becomes an apostrophe."""
    return f"`{printable(text).replace('`', chr(39)).strip() or ' '}`"


def picture(name: str, path: str) -> str:
    """Return the Markdown that shows a picture at a relative path."""
    return f"![{inline(name.replace('[', '(').replace(']', ')'))}]({quote(path)})"
