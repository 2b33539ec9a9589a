"""Every learner with every adapter and every regularizer learns, or is refused with the reason and a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.engine.batch import meta_gradients, prepare_tasks
from metaforge.errors import ConfigError
from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components
from metaforge.testing.toy import ToyClasses, ToyCurves, ToyLabels, ToyNet

REGISTRY = scan().with_plugin("dataset", "classes", ToyClasses).with_plugin("dataset", "curves", ToyCurves)
REGISTRY = REGISTRY.with_plugin("dataset", "labels", ToyLabels).with_plugin("backbone", "toy-net", ToyNet)
NAMES = {
    kind: [entry.name for entry in REGISTRY.entries(kind) if entry.distribution == CORE]
    for kind in ("learner", "adapter", "regularizer")
}
# An adapter without a learning rate is followed by one with a rate.
CHAINS = [name if REGISTRY.load("adapter", name).tags.rate else f"{name},sgd" for name in NAMES["adapter"]]
DATASETS = {"classification": "classes", "regression": "curves", "multi-label": "labels"}
# Learners whose gradient does not reach what a plugin meta-learns; a run of theirs prints a warning.
UNTRAINED = {"reptile": ("adapters.", "regularizers."), "fomaml": ("regularizers.",), "imaml": ("adapters.",)}
# Words of the reasons for which a combination may be refused.
REASONS = (
    "uses no adapter",
    "has no backbone for a regularizer to act on",
    "acts only where an adapter moves the network's weights",
    "which the learner",
    "only predictions of classes have",
    "whose own values would never change",
)
# Several, because some regularizers compare the losses of tasks.
TASKS = 2
# Fewer than the defaults, of which some are 100: a second step runs all that a further one would run.
FEWER = dict.fromkeys(("steps", "solver_steps", "finetune"), 2)


def few_steps(kind: str, name: str) -> dict[str, Any]:
    """Return a small value for each option of a plugin that is a number of steps."""
    fields = REGISTRY.load(kind, name).Config.model_fields
    return {option: steps for option, steps in FEWER.items() if option in fields}


def trained(learner: str, dataset: str, adapter: str, regularizer: str | None) -> Params:
    """Return the sums of the absolute gradients of two outer steps; raise `ConfigError` if the run is refused."""
    values: dict[str, Any] = {"learner": {"name": learner, **few_steps("learner", learner)}}
    values |= {"dataset": {"name": dataset}}
    values |= {"backbone": "toy-net"} if "backbone" in REGISTRY.load("learner", learner).tags.needs else {}
    values |= {"adapters": {name: few_steps("adapter", name) for name in adapter.split(",")}} if adapter else {}
    values |= {"regularizers": [regularizer]} if regularizer else {}
    shape = {"ways": 3 if dataset == "classes" else 1, "shots": 2, "queries": 2}
    values |= {"task": shape, "train": shape}
    parts = Components(resolve([Layer("test", values)], REGISTRY))
    spec = parts.training_spec()
    built = parts.learner(spec)
    current = built.init(make_key(0))
    seen: Params = {}
    for step in range(2):
        sampled = parts.dataset.sample("train", spec.shape, TASKS * step, TASKS, seed=0)
        keys = torch.stack([make_key(1, TASKS * step + place) for place in range(TASKS)])
        tasks = prepare_tasks(sampled, torch.device("cpu"), torch.float32)
        found = meta_gradients(built, current, tasks, keys, regularizers=parts.regularizers)
        assert found.losses.isfinite().all()
        for name, gradient in found.grads.items():
            assert gradient.isfinite().all(), name
            seen[name] = seen.get(name, torch.zeros(())) + gradient.abs().sum()
            current = current | {name: current[name] - 0.01 * gradient}
        current = current | {name: current[name] + change for name, change in found.state.items()}
    assert seen.keys() == split_state(current)[0].keys()
    return seen


def combinations(learner: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield kind, adapter and regularizer: each pair in one of the learner's kinds, so that each is in every kind."""
    tags = REGISTRY.load("learner", learner).tags
    kinds, adapters = sorted(tags.kinds), CHAINS if "adapter" in tags.needs else [""]
    for row, adapter in enumerate(adapters):
        for column, regularizer in enumerate((None, *NAMES["regularizer"])):
            # Without an adapter there are few pairs, which would leave kinds without some regularizers.
            for kind in kinds if not adapter else [kinds[(row + column) % len(kinds)]]:
                yield kind, adapter, regularizer


@pytest.mark.parametrize("learner", NAMES["learner"])
def test_a_learner_with_every_adapter_and_regularizer(learner: str) -> None:
    refused = []
    for kind, adapter, regularizer in combinations(learner):
        try:
            seen = trained(learner, DATASETS[kind], adapter, regularizer)
        except ConfigError as error:
            refused.append((regularizer, error))
            continue
        left_out = tuple(name for name in seen if name.startswith(UNTRAINED.get(learner, ())))
        own = {name: total for name, total in seen.items() if name not in left_out}
        # A bias in front of batch norm has no gradient, but most values have.
        assert sum(bool(total > 0) for total in own.values()) >= len(own) / 2, (adapter, regularizer, own)
    for regularizer, error in refused:
        assert regularizer is not None or "whose own values would never change" in error.what, error
        assert any(words in error.what for words in REASONS), error
        assert error.remedy


def test_every_adapter_and_every_regularizer_is_tried_with_every_kind() -> None:
    for learner in NAMES["learner"]:
        tags = REGISTRY.load("learner", learner).tags
        found = list(combinations(learner))
        adapters = CHAINS if "adapter" in tags.needs else [""]
        regularizers = (None, *NAMES["regularizer"])
        assert {(adapter, name) for _, adapter, name in found} == set(product(adapters, regularizers)), learner
        assert {(kind, adapter) for kind, adapter, _ in found} == set(product(tags.kinds, adapters)), learner
        assert {(kind, name) for kind, _, name in found} == set(product(tags.kinds, regularizers)), learner
