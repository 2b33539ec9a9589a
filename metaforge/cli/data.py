"""`metaforge data`: what a data set contains, how to download it, and a picture of one of its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli import options
from metaforge.cli.output import handle_errors, print_answer, print_json, print_note
from metaforge.system.streams import stdout_to_stderr

if TYPE_CHECKING:
    from metaforge.authoring.protocols import TaskShape

app = typer.Typer(no_args_is_help=True, help="Inspect, download and preview data sets.")

Name = Annotated[str, typer.Argument(help="Name of a data set.")]
SPLITS = ("train", "val", "test")


@app.command("inspect")
@handle_errors
def inspect(name: Name, settings: options.Settings = None, as_json: options.AsJson = False) -> None:
    """Show what the splits of a data set contain, and the shape of its tasks."""
    from metaforge.authoring.kinds import task_kind
    from metaforge.data.checks import expected_spec
    from metaforge.errors import DataError

    with _opened(name, settings) as (dataset, shape):
        facts: dict[str, Any] = {"name": name, "kind": task_kind(dataset.kind).name, "note": dataset.note, "splits": {}}
        for split in SPLITS:
            try:
                facts["splits"][split] = {**dataset.facts(split)}
            except DataError as error:
                # A data set may have no validation or test split, but it must have a training split.
                if split == "train":
                    raise
                facts["splits"][split] = {"unavailable": error.what}
        spec = expected_spec(dataset, dataset.spec("train", shape), shape)
        facts["task"] = {**shape._asdict(), "input shape": list(spec.x_shape), "outputs": spec.outputs}
    if as_json:
        print_json(facts)
        return
    print_answer(f"{name}: {facts['kind']}" + (f" ({dataset.note})" if dataset.note else ""))
    for split, split_facts in facts["splits"].items():
        print_answer(f"  {split}: {_facts_text(split_facts)}")
    print_answer(f"  task: {_facts_text(facts['task'])}")


@app.command("fetch")
@handle_errors
def fetch(name: Name, as_json: options.AsJson = False) -> None:
    """Download a data set. No other command uses the network."""
    from metaforge.data.root import data_root
    from metaforge.errors import DataError
    from metaforge.registry.running import UsedPlugin, running_errors
    from metaforge.registry.scan import scan

    registry = scan()
    plugin = UsedPlugin(registry.find("dataset", name), registry.load("dataset", name))
    download = getattr(plugin.cls, "fetch", None)
    if download is None:
        raise DataError(f"The data set {name!r} needs no download.", remedy="use it without `metaforge data fetch`")
    with stdout_to_stderr(), running_errors([plugin], plugin, "fetch"):
        files = [str(path) for path in download(data_root(), _DownloadProgress())]
    if as_json:
        print_json({"name": name, "files": files})
        return
    for path in files:
        print_answer(path)


@app.command("preview")
@handle_errors
def preview(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")],
    split: Annotated[str, typer.Option("--split", help="Split of the data set.")] = "train",
    index: Annotated[int, typer.Option("--index", min=0, max=options.MAX_INTEGER, help="Number of the episode.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=options.MAX_INTEGER, help="Seed of the episodes.")] = 0,
    settings: options.Settings = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw one task of a data set as a picture."""
    from metaforge.authoring.functional import one_task
    from metaforge.data.checks import expected_spec, expected_tasks
    from metaforge.results.episode_picture import episode_grid

    with _opened(name, settings) as (dataset, shape):
        spec = expected_spec(dataset, dataset.spec(split, shape), shape)
        task = one_task(expected_tasks(dataset, dataset.sample(split, shape, index, 1, seed=seed), spec, 1))
        grid = dataset.grid(split)
    out.parent.mkdir(parents=True, exist_ok=True)
    episode_grid(task, out, spec.kind, grid=grid)
    if as_json:
        answer = {"name": name, "split": split, "index": index, "seed": seed, **shape._asdict(), "picture": str(out)}
        print_json(answer)
    else:
        print_answer(str(out))


@contextmanager
def _opened(name: str, settings: list[str] | None) -> Iterator[tuple[Any, TaskShape]]:
    """Yield a data set and the shape of its tasks, both configured by `--set`; its errors name it."""
    from metaforge.authoring.protocols import TaskShape
    from metaforge.config.resolve import resolve
    from metaforge.data.root import data_root
    from metaforge.registry.scan import scan

    layers = options.config_layers(None, settings, {"dataset": ("dataset.name", name)})
    resolved = resolve(layers, scan(), complete=False)
    assert resolved.dataset is not None
    task = resolved.run.task
    with stdout_to_stderr():
        dataset = resolved.dataset.instantiate(root=data_root())
        with resolved.running_errors("code", owner=resolved.dataset):
            yield dataset, TaskShape(task.ways, task.shots, task.queries)


def _facts_text(facts: Mapping[str, Any]) -> str:
    """Return facts in one line, with thousands separators and at most four significant digits."""

    def value_text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return ", ".join(f"{key} {value_text(value)}" for key, value in facts.items())


class _DownloadProgress:
    """Prints the progress of each download on stderr, a line for every tenth (or 10 MB if the size is unknown)."""

    def __init__(self) -> None:
        self._printed: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else done // 10_000_000
        if self._printed.get(what) != tenth:
            self._printed[what] = tenth
            size = f" of {total / 1e6:.1f}" if total else ""
            print_note(f"{what}: {done / 1e6:.1f}{size} MB")
