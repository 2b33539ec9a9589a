"""Row 22: properties that must hold whatever the numbers are, each tried on a thousand random examples."""

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

from metaforge.authoring.protocols import TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, Layer, file_layer
from metaforge.data import ClassPool, episode_keys, sample_episodes, sample_without_replacement
from metaforge.errors import MetaForgeError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs import checkpoint
from metaforge_plugins.datasets.omniglot import Omniglot, OmniglotOptions
from tests.reliability.rows import Measured, Room, row

Draw = np.random.Generator


def whole(draw: Draw, least: int, most: int) -> int:
    """Return a whole number in a range, both ends included."""
    return int(draw.integers(least, most + 1))


def pool_and_shape(draw: Draw) -> tuple[ClassPool, TaskShape]:
    """Return classes whose every image shows its class and number, and a shape of task that fits them."""
    classes, each = whole(draw, 2, 40), whole(draw, 2, 20)
    numbers = np.arange(classes * each).reshape(classes, each)
    images = np.stack([numbers // 256, numbers % 256], axis=-1).astype(np.uint8)[:, :, None, None, :]
    shots = whole(draw, 1, each - 1)
    shape = TaskShape(whole(draw, 2, classes), shots, whole(draw, 1, each - shots))
    return ClassPool(images, [str(one) for one in range(classes)]), shape


def shown(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the number of the image that each example shows."""
    pixels = x.numpy().astype(np.int64).reshape(*x.shape[:2], 2)
    return np.asarray(pixels[..., 0] * 256 + pixels[..., 1])


def sampler_is_sound(draw: Draw, folder: Path) -> bool:
    """Episodes have every class `shots` and `queries` times, no example twice, and one class for each label."""
    pool, shape = pool_and_shape(draw)
    first, count, seed = whole(draw, 0, 10**9), whole(draw, 1, 4), whole(draw, 0, 2**62)
    task = sample_episodes(pool, shape, first, count, seed=seed, split="train")
    for episode in range(count):
        numbers = [shown(part.x)[episode] for part in task]
        labels = [part.y[episode].numpy() for part in task]
        every, label = np.concatenate(numbers), np.concatenate(labels)
        classes = every // pool.per_class
        pairs = {(int(a), int(b)) for a, b in zip(classes, label, strict=True)}
        each = [np.bincount(one, minlength=shape.ways) for one in labels]
        right = len(set(every.tolist())) == len(every) and len(pairs) == shape.ways
        right = right and {b for _, b in pairs} == set(range(shape.ways)) and len({a for a, _ in pairs}) == shape.ways
        if not (right and (each[0] == shape.shots).all() and (each[1] == shape.queries).all()):
            return False
    return True


def episodes_are_values(draw: Draw, folder: Path) -> bool:
    """An episode is the same alone and in any batch; another seed or split gives another one, unless there is one."""
    pool, shape = pool_and_shape(draw)
    first, count, seed = whole(draw, 0, 10**6), whole(draw, 2, 5), whole(draw, 0, 2**62)
    batch = sample_episodes(pool, shape, first, count, seed=seed, split="train")
    index = whole(draw, 0, count - 1)
    alone = sample_episodes(pool, shape, first + index, 1, seed=seed, split="train")
    pairs = [(part.x[index], one.x[0], part.y[index], one.y[0]) for part, one in zip(batch, alone, strict=True)]
    same = all(torch.equal(x, x_alone) and torch.equal(y, y_alone) for x, x_alone, y, y_alone in pairs)
    if shape.ways * (shape.shots + shape.queries) < 20:
        return same
    other = sample_episodes(pool, shape, first + index, 1, seed=seed, split="val")
    return same and not (torch.equal(alone.support.x, other.support.x) and torch.equal(alone.query.x, other.query.x))


def labels_are_permuted(draw: Draw, folder: Path) -> bool:
    """Over many episodes every class has every label: no label tells of a class."""
    pool = ClassPool(np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1), ["a", "b"])
    task = sample_episodes(pool, TaskShape(2, 1, 1), 0, 64, seed=whole(draw, 0, 2**62), split="train")
    classes = task.support.x.flatten(1) // 2
    matches = int((classes == task.support.y).all(1).sum())
    # 64 fair coins: fewer than 8 or more than 56 heads do not happen in a million examples.
    return 8 <= matches <= 56


def draws_are_distinct(draw: Draw, folder: Path) -> bool:
    """`sample_without_replacement` returns numbers below the population, none twice."""
    population = whole(draw, 1, 3000)
    count = whole(draw, 1, min(population, 50))
    found = sample_without_replacement(episode_keys(whole(draw, 0, 2**62), "x", 0, 3), population, count)
    return found.shape == (3, count) and all(
        len(set(one)) == count and min(one) >= 0 and max(one) < population for one in found.tolist()
    )


class Named(Omniglot):
    """Omniglot of names alone: every image is blank."""

    def _images(self, *collections: Any) -> Any:
        names = [
            f"{one.name}-{number // 32}/character{number % 32:02d}"
            for one in collections
            for number in range(one.characters)
        ]
        return names, np.zeros((len(names), 20, 1, 1, 1), dtype=np.uint8)


def splits_do_not_leak(draw: Draw, folder: Path) -> bool:
    """No character is in two splits, in any of its rotations, whatever the seed."""
    way = ("random", "lake")[whole(draw, 0, 1)]
    options = {"split": way, "split_seed": whole(draw, 0, 2**62), "holdout": whole(draw, 1, 29), "rotations": "none"}
    data = Named(OmniglotOptions.model_validate(options), root=folder)
    parts = [set(data.characters(split)) for split in ("train", "val", "test")]
    apart = not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    alphabets = [{name.split("/")[0] for name in part} for part in parts]
    apart = apart and (way == "random" or not (alphabets[0] & alphabets[1]))
    return apart and all(parts) and sum(map(len, parts)) == 1623


def value_for(draw: Draw, annotation: Any, metadata: list[Any]) -> Any:
    """Return a random value of a field, within its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [part for one in arguments[1:] for part in getattr(one, "metadata", [one])]
        return value_for(draw, arguments[0], [*metadata, *inner])
    if origin in (typing.Union, types.UnionType):
        return value_for(draw, arguments[whole(draw, 0, len(arguments) - 1)], metadata)
    if origin is Literal:
        return arguments[whole(draw, 0, len(arguments) - 1)]
    if origin in (list, tuple):
        return [value_for(draw, arguments[0], []) for _ in range(whole(draw, 1, 4))]
    bounds = {type(one): one for one in metadata}
    least = getattr(bounds.get(annotated_types.Ge), "ge", None)
    above = getattr(bounds.get(annotated_types.Gt), "gt", None)
    most = getattr(bounds.get(annotated_types.Le), "le", None)
    below = getattr(bounds.get(annotated_types.Lt), "lt", None)
    low = least if least is not None else above if above is not None else 0
    high = most if most is not None else below if below is not None else low + 1000
    if annotation is bool:
        return bool(whole(draw, 0, 1))
    if annotation is int:
        return whole(draw, int(low) + (least is None and above is not None), int(high) - (most is None))
    if annotation is float:
        return float(low + (high - low) * draw.uniform(0.01, 0.99))
    return None if annotation is type(None) else "word"


def random_table(draw: Draw, model: type[BaseModel]) -> dict[str, Any]:
    """Return random values of some of a model's fields."""
    made = {}
    for name, info in model.model_fields.items():
        if draw.random() < 0.4:
            value = value_for(draw, info.annotation, list(info.metadata))
            made[name] = "none" if value is None else value
    return made


def random_layer(draw: Draw, registry: Registry) -> dict[str, Any]:
    """Return a random run file: values of the sections, a learner, a data set, a network, and sets of plugins."""
    values: dict[str, Any] = {"seed": whole(draw, 0, 2**62)}
    for table, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            values[table] = random_table(draw, info.annotation)
    for kind in ("learner", "dataset", "backbone"):
        name = str(draw.choice(registry.names(kind)))
        values[kind] = {"name": name, **random_table(draw, registry.load(kind, name).Config)}
    for key, kind in SETS.items():
        chosen = [str(name) for name in draw.permutation(registry.names(kind))[: whole(draw, 0, 2)]]
        if chosen:
            values[key] = {name: random_table(draw, registry.load(kind, name).Config) for name in chosen}
    return values


def resolved_anyhow(draw: Draw, registry: Registry) -> Resolved:
    """Return the first random configuration that makes sense: most choose plugins that do not fit one another."""
    while True:
        try:
            return resolve([Layer("random", random_layer(draw, registry))], registry)
        except MetaForgeError:
            continue


REGISTRY = scan()


def configurations_survive(draw: Draw, folder: Path) -> bool:
    """A configuration written as a run file, in either form, is read as the same configuration."""
    made, path = resolved_anyhow(draw, REGISTRY), folder / "run.toml"
    for text in (made.to_toml(), made.to_annotated_toml()):
        path.write_text(text, "utf-8")
        if resolve([file_layer(path)], REGISTRY) != made:
            return False
    return True


def checkpoints_survive(draw: Draw, folder: Path) -> bool:
    """Tensors of any shape and type, and facts, come back from a checkpoint bit for bit."""
    kinds = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)

    def tensors() -> dict[str, torch.Tensor]:
        made = {}
        for index in range(whole(draw, 0, 4)):
            shape = [whole(draw, 0, 4) for _ in range(whole(draw, 0, 3))]
            bits = torch.from_numpy(draw.integers(0, 256, shape))
            made[f"layer.{index}.é"] = bits.to(kinds[whole(draw, 0, len(kinds) - 1)])
        return made

    values, training, step = tensors() or {"w": torch.zeros(())}, tensors(), whole(draw, 0, 10**6)
    facts = {"text": 'é\n\0"', "number": float(draw.normal()), "nested": {"list": [1, None, True]}}
    path = checkpoint.save(folder / "ckpt", step, values, training, facts)
    found = checkpoint.load(path)
    shutil.rmtree(path)
    pairs = ((values, found.values), (training, found.training))
    equal = all(
        one.keys() == other.keys()
        and all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)
        for one, other in pairs
    )
    return equal and found.step == step and all(found.facts[key] == value for key, value in facts.items())


PROPERTIES: dict[str, Callable[[Draw, Path], bool]] = {
    function.__name__.replace("_", " "): function
    for function in (
        sampler_is_sound,
        episodes_are_values,
        labels_are_permuted,
        draws_are_distinct,
        splits_do_not_leak,
        configurations_survive,
        checkpoints_survive,
    )
}


@row(22, "properties on random examples", goal="at least 1,000 examples each, none fails")
def properties(room: Room, *, count: int = 1000, seed: int = 22) -> Measured:
    """Try every property on random examples; a failure names the property and the number of the example."""
    held: dict[str, int] = {}
    faults: list[str] = []
    for name, holds in PROPERTIES.items():
        folder = room.sub(name.replace(" ", "-"))
        for index in room.counted(count):
            # Each example has a generator of its own, so that it can be repeated alone.
            if holds(np.random.default_rng([seed, index]), folder):
                held[name] = held.get(name, 0) + 1
            else:
                faults.append(f"{name}: example {index}")
    return Measured(
        not faults and all(held.get(name) == count for name in PROPERTIES),
        f"{len(PROPERTIES)} properties on {count:,} examples each, {len(faults)} failures",
        {"held": held, "faults": faults[:20]},
    )
