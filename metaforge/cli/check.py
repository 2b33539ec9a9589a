"""`metaforge check`: runs the conformance kit on a plugin and prints one line per check."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli.options import AsJson, KindOption, parse_integers, parse_kind, scan_plugins
from metaforge.cli.output import handle_errors, print_answer, print_json
from metaforge.errors import ConfigError

if TYPE_CHECKING:
    from metaforge.testing.run_checks import Outcome
    from metaforge.testing.subject import Subject

FAILED = 4


@handle_errors
def check(
    name: Annotated[str | None, typer.Argument(help="Name of a plugin; leave it out with --backbone.")] = None,
    kind: KindOption = None,
    as_json: AsJson = False,
    expect: Annotated[
        list[str] | None, typer.Option("--expect", help="A check that is known to fail: CHECK=REASON. Repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the plugin: OPTION=VALUE, e.g. steps=3. Repeatable."),
    ] = None,
    x_shape: Annotated[
        str | None, typer.Option("--x-shape", help="Shape of the inputs of a test task, e.g. 1,28,28.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="A torch module of your own, MODULE:CLASS, to compare with plain PyTorch."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="With --backbone: leave out the compiled step.")] = False,
) -> None:
    """Check that a plugin keeps the contract of its kind, or that a network of your own is computed truthfully.

    With --backbone, the network is compared with plain PyTorch in float64: loss and first gradient, and the
    meta-gradient by every plan and in a compiled step, which takes a while. It needs --x-shape, the shape of an input.
    The exit code is 4 if the numbers differ; a way of computing that is refused is no failure.

    A check that passes or does not apply is printed at once. Failures follow; those of the same cause are one line. The
    exit code is 4 if a check fails.
    """
    if (name is None) is (backbone is None):
        raise ConfigError(
            "There is nothing to check." if name is None else "A plugin and a network are two checks.",
            where="NAME, --backbone",
            remedy="give the name of a plugin, or --backbone MODULE:CLASS",
        )
    if backbone is not None:
        _check_backbone(backbone, parse_integers("--x-shape", x_shape), fast=fast, as_json=as_json)
        return
    assert name is not None
    subject = _subject(name, kind, settings or [], parse_integers("--x-shape", x_shape))
    _check_plugin(subject, _expected_failures(expect or []), as_json=as_json)


def _subject(name: str, kind: str | None, settings: Sequence[str], sizes: Sequence[int] | None) -> Subject:
    """Return the plugin to check, with its options."""
    registry = scan_plugins()
    # Looked up before the import of the conformance kit, which imports torch.
    entry = registry.find_any(name, parse_kind(kind))
    from metaforge.testing.subject import Subject

    subject = Subject.of(f"{entry.kind}:{entry.qualified}", registry)
    if settings:
        subject = subject.with_options(_options(subject, settings))
    subject = replace(subject, x_shape=None if sizes is None else tuple(sizes))
    subject.require_data()
    return subject


def _check_plugin(subject: Subject, expected: Mapping[str, str], *, as_json: bool) -> None:
    """Run the checks of a plugin and print their results."""
    from metaforge.testing.run_checks import by_cause, counts, run_checks

    results = []
    # What a plugin prints goes to stderr, so that stdout has only the answer.
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for outcome in run_checks(subject, expected):
            results.append(outcome)
            if not as_json and outcome.status != "failed":
                with contextlib.redirect_stdout(stdout):
                    print_answer(_line([outcome]))
    if as_json:
        rows = [_row(outcome) for outcome in results]
        print_json({"kind": subject.kind, "name": subject.name, **counts(results), "checks": rows})
    else:
        for failures in by_cause(results):
            print_answer(_line(failures))
        print_answer(", ".join(f"{number} {status}" for status, number in counts(results).items()))
    if counts(results)["failed"]:
        raise typer.Exit(FAILED)


def _check_backbone(path: str, sizes: Sequence[int] | None, *, fast: bool, as_json: bool) -> None:
    """Print how a network of the user's own compares with plain PyTorch, one line for each way to compute it."""
    from metaforge.runs.api import module_maker
    from metaforge.testing.networks import WAYS, check_network

    if not sizes:
        raise ConfigError(
            "The shape of an input of the network is not known.", where="--x-shape", remedy="add --x-shape 3,84,84"
        )
    # The user's module lies in the working directory, where `python` would find it too.
    sys.path.insert(0, "")
    ways = [way for way in WAYS if way != "compiled" or not fast]
    results = []
    for result in check_network(module_maker(path), tuple(sizes), ways):
        results.append(result)
        if not as_json:
            figure = "" if result.difference is None else f" {result.difference:.2g}"
            note = f": {result.message}" if result.message else ""
            print_answer(f"{result.way:9} {result.status}{figure}{note}")
    if as_json:
        print_json({"backbone": path, "results": [result._asdict() for result in results]})
    # Refused by every plan is a failure; by one of them it is not.
    if results[0].status != "equal" or any(result.status == "different" for result in results):
        raise typer.Exit(FAILED)


def _expected_failures(flags: Sequence[str]) -> dict[str, str]:
    """Return the reason for each check that `--expect` names; raise `ConfigError` if there is none."""
    pairs = [flag.partition("=") for flag in flags]
    for name, _, reason in pairs:
        if not reason.strip():
            raise ConfigError(
                f"--expect is {name!r}, but should be CHECK=REASON.", remedy="add the reason for which the check fails"
            )
    return {name.strip(): reason.strip() for name, _, reason in pairs}


def _options(subject: Subject, settings: Sequence[str]) -> dict[str, Any]:
    """Return the options that `--set` flags give a plugin; raise `ConfigError` if they are invalid."""
    from metaforge.config.sources import flags_layer, parse_setting
    from metaforge.config.validation import check_bounds, validate

    flags = [(f"--set {path}", f"{subject.kind}.{path}", value) for path, value in map(parse_setting, settings)]
    layer = flags_layer(flags)
    check_bounds(layer.values, "--set")
    options: dict[str, Any] = layer.values[subject.kind]
    origins = {f"{subject.kind}.{name}": f"--set {name}" for name in options}
    validate(subject.cls.Config, options, subject.kind, {**origins, **layer.origins})
    return options


def _line(outcomes: Sequence[Outcome]) -> str:
    """Return the result of a check, or of several that failed for one cause, as a line of text."""
    first = outcomes[0]
    status = {"failed": "FAILED", "skipped": "not applicable"}.get(first.status, first.status)
    text = " ".join((first.message or first.check.text).split())
    return f"{', '.join(outcome.check.name for outcome in outcomes):15} {status}: {text}"


def _row(outcome: Outcome) -> dict[str, Any]:
    """Return the result of a check for JSON."""
    return {
        "check": outcome.check.name,
        "status": outcome.status,
        "text": outcome.check.text,
        "message": outcome.message,
        "cause": outcome.cause,
    }
