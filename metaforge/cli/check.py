"""`metaforge check`: whether a plugin does what its kind must, one line for each check."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, chosen_kind, numbers, scanned
from metaforge.cli.output import guarded, put, put_json

if TYPE_CHECKING:
    from metaforge.testing.run_checks import Outcome

FAILED = 4


@guarded
def check(
    name: Annotated[str, typer.Argument(help="Name of a plugin.")],
    kind: KindOption = None,
    json: AsJson = False,
    expect: Annotated[
        list[str] | None, typer.Option("--expect", help="A check that is known to fail: CHECK=REASON; may be repeated.")
    ] = None,
    x_shape: Annotated[
        str | None, typer.Option("--x-shape", help="Shape of a toy task's inputs, e.g. 1,28,28.")
    ] = None,
) -> None:
    """Check that a plugin does what its kind must: gradients, purity, determinism, data; a line for each check."""
    registry = scanned()
    # Looked up before the kit, and torch with it, is imported.
    entry = registry.find_any(name, chosen_kind(kind))
    from metaforge.testing.run_checks import counts, outcomes
    from metaforge.testing.subject import Subject

    subject = Subject.of(f"{entry.kind}:{entry.qualified}", registry)
    sizes = numbers("--x-shape", x_shape)
    subject = replace(subject, x_shape=None if sizes is None else tuple(sizes))
    subject.ready()
    found = []
    # What a plugin prints must not end up between the lines of the answer.
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for outcome in outcomes(subject, _reasons(expect or [])):
            found.append(outcome)
            if not json:
                with contextlib.redirect_stdout(stdout):
                    put(_line(outcome))
    if json:
        rows = [_row(outcome) for outcome in found]
        put_json({"kind": subject.kind, "name": subject.name, **counts(found), "checks": rows})
    else:
        put(", ".join(f"{number} {what}" for what, number in counts(found).items()))
    if counts(found)["failed"]:
        raise typer.Exit(FAILED)


def _reasons(given: Sequence[str]) -> dict[str, str]:
    """Return the expected failures that the flags name; raise `ConfigError` for one without a reason."""
    from metaforge.errors import ConfigError

    pairs = [text.partition("=") for text in given]
    for name, _, reason in pairs:
        if not reason.strip():
            raise ConfigError(f"--expect is {name!r}, but should be CHECK=REASON.", remedy="say why it may fail")
    return {name.strip(): reason.strip() for name, _, reason in pairs}


def _line(outcome: Outcome) -> str:
    status = {"failed": "FAILED", "skipped": "not applicable"}.get(outcome.status, outcome.status)
    said = " ".join((outcome.said or outcome.check.text).split())
    return f"{outcome.check.name:15} {status}: {said}"


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "check": outcome.check.name,
        "status": outcome.status,
        "text": outcome.check.text,
        "said": outcome.said,
    }
