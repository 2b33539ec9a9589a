"""The plugins of `docs/write-a-plugin.md` work: their files are written and installed, and the commands are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from blocks import ROOT, SHORTER_WORDS, Block, blocks, lines, shortened
from forked import call_each

PAGE = ROOT / "docs" / "write-a-plugin.md"
# `tests/metaforge/cli/test_new.py` tests the quick way; downloads need a network.
NOT_RUN = ("my-idea", "data fetch")


def follow(folder: Path, data: str) -> dict[str, str]:
    """Follow the page in a folder, and return the output of each command, by the command as the page has it."""
    prefix, outputs, pending = folder / "prefix", dict[str, str](), list[str]()
    prefix.mkdir()
    for block in blocks(PAGE):
        if block.file:
            write(folder, block, data)
        for line in lines(block) if block.language == "sh" else ():
            if any(words in line for words in NOT_RUN):
                continue
            if line.startswith("pip "):
                outputs |= run(folder, pending, data)
                pending = []
                install = shlex.split(shortened(line, SHORTER_WORDS, prefix=str(prefix)))
                subprocess.run([sys.executable, "-m", *install, "-q"], cwd=folder, check=True, timeout=120)
            else:
                pending.append(line)
    return outputs | run(folder, pending, data)


def write(folder: Path, block: Block, data: str) -> None:
    text = re.sub(r"^steps = \d+$", "steps = 2", block.text, flags=re.MULTILINE).replace('"omniglot"', f'"{data}"')
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    assert path.exists() == block.adds, f"{block.place}: {block.file}"
    path.write_text((path.read_text("utf-8") + "\n\n" if block.adds else "") + text, "utf-8")


def run(folder: Path, commands: list[str], data: str) -> dict[str, str]:
    """Run commands in one process that imports the packages as they are now; fail if a command fails."""
    if not commands:
        return {}
    words = [shlex.split(shortened(line, SHORTER_WORDS).replace("omniglot", data)) for line in commands]
    # `metaforge check` runs all checks; in the tests of the package one is enough to show that they are collected.
    words = [each if each[0] == "metaforge" else [*each[3:], "-k", "config"] for each in words]
    results = call_each(folder, folder / "prefix", words, METAFORGE_PLUGINS="metaforge-my-ridge")
    for line, (code, out, err) in zip(commands, results, strict=True):
        assert code == 0, f"{line}\n{out}\n{err}"
    return {line: out for line, (_, out, _) in zip(commands, results, strict=True)}


def test_following_the_page_gives_plugins_that_pass_their_checks_and_train(tmp_path: Path) -> None:
    has_omniglot = (Path(os.environ.get("METAFORGE_DATA", "/nowhere")) / "omniglot").is_dir()
    outputs = follow(tmp_path, "omniglot" if has_omniglot else "glyphs")
    (row,) = [line for line in outputs["metaforge list-plugins --kind learner"].splitlines() if " my-ridge " in line]
    assert row.split()[:5] == ["learner", "my-ridge", "ready", "metaforge-my-ridge", "0.1.0"]
    assert "shrinkage" in outputs["metaforge describe my-ridge"]
    checks = [text for line, text in outputs.items() if line.startswith("metaforge check")]
    assert len(checks) == 6
    for text in checks:
        assert int(re.findall(r"(\d+) run", text)[-1]) >= 4
        assert " 0 failed" in text
    for folder in ("my-ridge", "my-ridge-20-ways", "gratings", "equal"):
        assert (tmp_path / "runs" / folder / "config.toml").is_file()
    assert (tmp_path / "gratings.png").is_file()


def test_the_plugins_of_the_page_need_two_files() -> None:
    optional = ("metaforge-my-ridge/tests/test_my_ridge.py", "run.toml")
    files = {block.file for block in blocks(PAGE) if block.file and block.file not in optional}
    assert files == {"metaforge-my-ridge/pyproject.toml", "metaforge-my-ridge/metaforge_my_ridge.py"}
