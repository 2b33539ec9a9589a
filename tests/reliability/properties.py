"""Row 22: properties that must hold for all inputs, each tried on a thousand random examples."""

from __future__ import annotations

import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import annotated_types
import numpy as np
import torch
from pydantic import BaseModel
from torch.utils._pytree import tree_leaves

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES, Layer, file_layer
from metaforge.data import ClassPool, episode_keys, sample_episodes, sample_without_replacement
from metaforge.errors import MetaForgeError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge_plugins.datasets.omniglot import Omniglot, OmniglotOptions
from tests.reliability.rows import Measured, Workspace, row

Generator = np.random.Generator


def integer(generator: Generator, least: int, most: int) -> int:
    """Return a random integer from `least` to `most`, both included."""
    return int(generator.integers(least, most + 1))


def pool_and_shape(generator: Generator) -> tuple[ClassPool, TaskShape]:
    """Return a class pool whose images encode their own number, and a task shape that is feasible for it."""
    classes, each = integer(generator, 2, 40), integer(generator, 2, 20)
    numbers = np.arange(classes * each).reshape(classes, each)
    images = np.stack([numbers // 256, numbers % 256], axis=-1).astype(np.uint8)[:, :, None, None, :]
    shots = integer(generator, 1, each - 1)
    shape = TaskShape(integer(generator, 2, classes), shots, integer(generator, 1, each - shots))
    return ClassPool(images, [str(item) for item in range(classes)]), shape


def image_numbers(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the number that the image of each example encodes."""
    pixels = x.numpy().astype(np.int64).reshape(*x.shape[:2], 2)
    return np.asarray(pixels[..., 0] * 256 + pixels[..., 1])


def episodes_are_valid(generator: Generator, folder: Path) -> bool:
    """An episode has `shots` and `queries` examples per class, no example twice, and one class per label."""
    pool, shape = pool_and_shape(generator)
    first, count, seed = integer(generator, 0, 10**9), integer(generator, 1, 4), integer(generator, 0, 2**62)
    task = sample_episodes(pool, shape, first, count, seed=seed, split="train")
    for episode in range(count):
        numbers = [image_numbers(part.x)[episode] for part in (task.support, task.query)]
        labels = [part.y[episode].numpy() for part in (task.support, task.query)]
        every, label = np.concatenate(numbers), np.concatenate(labels)
        classes = every // pool.per_class
        pairs = {(int(a), int(b)) for a, b in zip(classes, label, strict=True)}
        each = [np.bincount(item, minlength=shape.ways) for item in labels]
        correct = len(set(every.tolist())) == len(every) and len(pairs) == shape.ways
        correct = (
            correct and {b for _, b in pairs} == set(range(shape.ways)) and len({a for a, _ in pairs}) == shape.ways
        )
        if not (correct and (each[0] == shape.shots).all() and (each[1] == shape.queries).all()):
            return False
    return True


def episodes_are_values(generator: Generator, folder: Path) -> bool:
    """An episode is the same alone and in any batch; another split gives another episode."""
    pool, shape = pool_and_shape(generator)
    first, count, seed = integer(generator, 0, 10**6), integer(generator, 2, 5), integer(generator, 0, 2**62)
    batch = sample_episodes(pool, shape, first, count, seed=seed, split="train")
    index = integer(generator, 0, count - 1)
    alone = sample_episodes(pool, shape, first + index, 1, seed=seed, split="train")
    pairs = zip(tree_leaves(one_task(batch, index)), tree_leaves(one_task(alone)), strict=True)
    same = all(torch.equal(leaf, leaf_alone) for leaf, leaf_alone in pairs)
    # With few examples, two splits can give the same episode by chance.
    if shape.ways * (shape.shots + shape.queries) < 20:
        return same
    other = sample_episodes(pool, shape, first + index, 1, seed=seed, split="val")
    return same and not (torch.equal(alone.support.x, other.support.x) and torch.equal(alone.query.x, other.query.x))


def labels_are_permuted(generator: Generator, folder: Path) -> bool:
    """Over many episodes every class gets every label, so that a label says nothing about the class."""
    pool = ClassPool(np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1), ["a", "b"])
    task = sample_episodes(pool, TaskShape(2, 1, 1), 0, 64, seed=integer(generator, 0, 2**62), split="train")
    classes = task.support.x.flatten(1) // 2
    matches = int((classes == task.support.y).all(1).sum())
    # 64 fair coins: the probability of fewer than 8 or more than 56 heads is below 1e-9.
    return 8 <= matches <= 56


def draws_are_distinct(generator: Generator, folder: Path) -> bool:
    """`sample_without_replacement` returns different numbers below the population."""
    population = integer(generator, 1, 3000)
    count = integer(generator, 1, min(population, 50))
    drawn = sample_without_replacement(episode_keys(integer(generator, 0, 2**62), "x", 0, 3), population, count)
    return drawn.shape == (3, count) and all(
        len(set(item)) == count and min(item) >= 0 and max(item) < population for item in drawn.tolist()
    )


class Named(Omniglot):
    """Omniglot with the names of its characters and blank images."""

    def _images(self, *collections: Any) -> Any:
        names = [
            f"{item.name}-{number // 32}/character{number % 32:02d}"
            for item in collections
            for number in range(item.characters)
        ]
        return names, np.zeros((len(names), 20, 1, 1, 1), dtype=np.uint8)


def splits_do_not_leak(generator: Generator, folder: Path) -> bool:
    """No character is in two splits, for any seed."""
    split = ("random", "lake")[integer(generator, 0, 1)]
    options = {
        "split": split,
        "split_seed": integer(generator, 0, 2**62),
        "holdout": integer(generator, 1, 29),
        "rotations": "none",
    }
    data = Named(OmniglotOptions.model_validate(options), root=folder)
    parts = [set(data.characters(split)) for split in ("train", "val", "test")]
    disjoint = not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    alphabets = [{name.split("/")[0] for name in part} for part in parts]
    disjoint = disjoint and (split == "random" or not (alphabets[0] & alphabets[1]))
    return disjoint and all(parts) and sum(map(len, parts)) == 1623


def value_for(generator: Generator, annotation: Any, metadata: list[Any]) -> Any:
    """Return a random value of a field, within its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [part for item in arguments[1:] for part in getattr(item, "metadata", [item])]
        return value_for(generator, arguments[0], [*metadata, *inner])
    if origin in (typing.Union, types.UnionType):
        return value_for(generator, arguments[integer(generator, 0, len(arguments) - 1)], metadata)
    if origin is Literal:
        return arguments[integer(generator, 0, len(arguments) - 1)]
    if origin is dict:
        names = ("model.*", "adapters.*", "w")[: integer(generator, 0, 3)]
        return {name: random_table(generator, arguments[1]) for name in names}
    if origin is tuple and Ellipsis not in arguments:
        return [value_for(generator, argument, []) for argument in arguments]
    if origin in (list, tuple):
        return [value_for(generator, arguments[0], []) for _ in range(integer(generator, 1, 4))]
    bounds = {type(item): item for item in metadata}
    least = getattr(bounds.get(annotated_types.Ge), "ge", None)
    above = getattr(bounds.get(annotated_types.Gt), "gt", None)
    most = getattr(bounds.get(annotated_types.Le), "le", None)
    below = getattr(bounds.get(annotated_types.Lt), "lt", None)
    low = least if least is not None else above if above is not None else 0
    high = most if most is not None else below if below is not None else low + 1000
    if annotation is bool:
        return bool(integer(generator, 0, 1))
    if annotation is int:
        return integer(generator, int(low) + (least is None and above is not None), int(high) - (most is None))
    if annotation is float:
        return float(low + (high - low) * generator.uniform(0.01, 0.99))
    return None if annotation is type(None) else "word"


def random_table(generator: Generator, model: type[BaseModel]) -> dict[str, Any]:
    """Return random values of some of a model's fields."""
    values = {}
    for name, info in model.model_fields.items():
        if generator.random() < 0.4:
            value = value_for(generator, info.annotation, list(info.metadata))
            values[name] = "none" if value is None else value
    return values


def random_layer(generator: Generator, registry: Registry) -> dict[str, Any]:
    """Return a random run file: settings of the sections, a learner, a data set, a backbone, and sets of plugins."""
    values: dict[str, Any] = {"seed": integer(generator, 0, 2**62)}
    for table, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            values[table] = random_table(generator, info.annotation)
    for kind in SINGLES:
        name = str(generator.choice(registry.names(kind)))
        values[kind] = {"name": name, **random_table(generator, registry.load(kind, name).Config)}
    for key, kind in SETS.items():
        chosen = [str(name) for name in generator.permutation(registry.names(kind))[: integer(generator, 0, 2)]]
        if chosen:
            values[key] = {name: random_table(generator, registry.load(kind, name).Config) for name in chosen}
    return values


def random_configuration(generator: Generator, registry: Registry) -> Resolved:
    """Return the first random configuration that is valid: most choose plugins that do not fit together."""
    while True:
        try:
            return resolve([Layer("random", random_layer(generator, registry))], registry)
        except MetaForgeError:
            continue


REGISTRY = scan()


def configurations_survive(generator: Generator, folder: Path) -> bool:
    """A configuration written as a run file, with or without comments, is read as the same configuration."""
    resolved, path = random_configuration(generator, REGISTRY), folder / "run.toml"
    for text in (resolved.to_toml(), resolved.to_annotated_toml()):
        path.write_text(text, "utf-8")
        if resolve([file_layer(path)], REGISTRY) != resolved:
            return False
    return True


def checkpoints_survive(generator: Generator, folder: Path) -> bool:
    """Tensors of any shape and dtype, and facts, are loaded from a checkpoint bit for bit."""
    kinds = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)

    def tensors() -> dict[str, torch.Tensor]:
        values = {}
        for index in range(integer(generator, 0, 4)):
            shape = [integer(generator, 0, 4) for _ in range(integer(generator, 0, 3))]
            bits = torch.from_numpy(generator.integers(0, 256, shape))
            values[f"layer.{index}.é"] = bits.to(kinds[integer(generator, 0, len(kinds) - 1)])
        return values

    values, training, step = tensors() or {"w": torch.zeros(())}, tensors(), integer(generator, 0, 10**6)
    facts = {"text": 'é\n\0"', "number": float(generator.normal()), "nested": {"list": [1, None, True]}}
    path = checkpoint.save(folder / "ckpt", step, values, training, facts)
    loaded = checkpoint.load(path)
    shutil.rmtree(path)
    pairs = ((values, loaded.values), (training, loaded.training))
    equal = all(
        item.keys() == other.keys()
        and all(item[key].dtype == other[key].dtype and torch.equal(item[key], other[key]) for key in item)
        for item, other in pairs
    )
    return equal and loaded.step == step and all(loaded.facts[key] == value for key, value in facts.items())


PROPERTIES: dict[str, Callable[[Generator, Path], bool]] = {
    function.__name__.replace("_", " "): function
    for function in (
        episodes_are_valid,
        episodes_are_values,
        labels_are_permuted,
        draws_are_distinct,
        splits_do_not_leak,
        configurations_survive,
        checkpoints_survive,
    )
}


@row(
    22,
    "properties of episodes, splits, configurations and checkpoints, on random inputs",
    goal="at least 1,000 examples each, none fails",
)
def properties(workspace: Workspace, *, count: int = 1000, seed: int = 22) -> Measured:
    """Try every property on random examples; a failure states the property and the index of the example."""
    examples_passed: dict[str, int] = {}
    faults: list[str] = []
    for name, holds in PROPERTIES.items():
        folder = workspace.subfolder(name.replace(" ", "-"))
        for index in workspace.indices(count):
            # One generator per example, so that a failing example can be repeated alone.
            if holds(np.random.default_rng([seed, index]), folder):
                examples_passed[name] = examples_passed.get(name, 0) + 1
            else:
                faults.append(f"{name}: example {index}")
    return Measured(
        not faults and all(examples_passed.get(name) == count for name in PROPERTIES),
        f"{len(PROPERTIES)} properties on {count:,} examples each, {len(faults)} failures",
        {"held": examples_passed, "faults": faults[:20]},
    )
