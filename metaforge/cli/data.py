"""`metaforge data`: what a data set holds, how to get it, and what one of its tasks looks like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge.cli import options
from metaforge.cli.output import guarded, put, put_json, say

if TYPE_CHECKING:
    from metaforge.authoring.protocols import TaskShape

app = typer.Typer(no_args_is_help=True, help="Inspect, fetch and preview data sets.")

Name = Annotated[str, typer.Argument(help="Name of a data set.")]
SPLITS = ("train", "val", "test")


@app.command("inspect")
@guarded
def inspect(name: Name, settings: options.Settings = None, json: options.AsJson = False) -> None:
    """Show what the splits of a data set hold."""
    from metaforge.errors import DataError

    dataset, shape = _opened(name, settings)
    facts: dict[str, Any] = {"name": name, "kind": dataset.kind, "note": dataset.note, "splits": {}}
    for split in SPLITS:
        try:
            facts["splits"][split] = {**dataset.facts(split)}
        except DataError as error:
            # A data set without a validation split is no mistake; one without training data is.
            if split == "train":
                raise
            facts["splits"][split] = {"unavailable": error.what}
    spec = dataset.spec("train", shape)
    facts["task"] = {**shape._asdict(), "input shape": list(spec.x_shape), "outputs": spec.outputs}
    if json:
        put_json(facts)
        return
    put(f"{name}: {dataset.kind}" + (f" ({dataset.note})" if dataset.note else ""))
    for split, found in facts["splits"].items():
        put(f"  {split}: {_listed(found)}")
    put(f"  task: {_listed(facts['task'])}")


@app.command("fetch")
@guarded
def fetch(name: Name, json: options.AsJson = False) -> None:
    """Download a data set; this is the only command that uses the network."""
    from metaforge.data.root import data_root
    from metaforge.errors import DataError
    from metaforge.registry.scan import scan

    get = getattr(scan().load("dataset", name), "fetch", None)
    if get is None:
        raise DataError(f"The data set {name!r} has nothing to fetch.", remedy="use it as it is")
    files = [str(path) for path in get(data_root(), _Bytes())]
    if json:
        put_json({"name": name, "files": files})
        return
    for path in files:
        put(path)


@app.command("preview")
@guarded
def preview(
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write (PNG).")],
    split: Annotated[str, typer.Option("--split", help="Split to draw from.")] = "train",
    index: Annotated[int, typer.Option("--index", min=0, help="Number of the task.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the tasks.")] = 0,
    settings: options.Settings = None,
    json: options.AsJson = False,
) -> None:
    """Draw one task of a data set."""
    from metaforge.authoring.protocols import Examples, Task
    from metaforge.results.pictures import episode_grid

    dataset, shape = _opened(name, settings)
    batch = dataset.sample(split, shape, index, 1, seed=seed)
    task = Task(*(Examples(part.x[0], part.y[0]) for part in batch))
    out.parent.mkdir(parents=True, exist_ok=True)
    episode_grid(task, out)
    if json:
        put_json({"name": name, "split": split, "index": index, "seed": seed, **shape._asdict(), "picture": str(out)})
    else:
        put(str(out))


def _opened(name: str, settings: list[str] | None) -> tuple[Any, TaskShape]:
    """Return a data set and the shape of its tasks."""
    from metaforge.authoring.protocols import TaskShape
    from metaforge.config.resolve import resolve
    from metaforge.data.root import data_root
    from metaforge.registry.scan import scan

    layers = options.layers(None, settings, {"dataset": ("dataset.name", name)})
    resolved = resolve(layers, scan(), complete=False)
    assert resolved.dataset is not None
    dataset = resolved.dataset.instantiate(root=data_root())
    task = resolved.run.task
    return dataset, TaskShape(task.ways, task.shots, task.queries)


def _listed(facts: Mapping[str, Any]) -> str:
    """Return facts in a line, with no more digits than a person wants."""

    def word(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return ", ".join(f"{key} {word(value)}" for key, value in facts.items())


class _Bytes:
    """Says on stderr how far a download is, a line for every tenth of it."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else done // 10_000_000
        if self._said.get(what) != tenth:
            self._said[what] = tenth
            share = f" of {total / 1e6:.1f}" if total else ""
            say(f"{what}: {done / 1e6:.1f}{share} MB")
