"""The speed of every learner beside a plain loop over the tasks, with the same gradients.

Left out are `ftml`, whose gradient is that of `maml`; `leo`, which draws random numbers in each inner step; and
`fine-tune` in regression, which trains on all tasks as one batch, so that there is no loop over tasks. Where another
learner draws random numbers, the loop gets the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import Case, Make, compare
from benchmarks.contestants import Work
from benchmarks.learner_loops.plain import Plain
from benchmarks.learner_methods import METHODS, Method
from benchmarks.metaforge_step import Gradients, step_gradients, task_key
from metaforge.authoring.functional import one_task, split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import Learner, Params, Task, TaskShape, TaskSpec
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components

# As many as Omniglot has in training; only pretraining has a classifier of all of them.
TRAINING_CLASSES = 964


@dataclass(frozen=True)
class LearnerWork:
    """The meta-gradient of a method on random tasks, at values close to those with which a run begins."""

    method: str
    episodes: Work
    tasks: int
    dtype: torch.dtype = torch.float32

    @property
    def quick(self) -> bool:
        """Whether a step is compiled within seconds."""
        return self.episodes.quick

    @property
    def spec(self) -> TaskSpec:
        """The spec of the tasks."""
        return replace(self.episodes.spec, classes=TRAINING_CLASSES) if self.chosen.pretrains else self.episodes.spec

    @property
    def chosen(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def steps(self) -> int:
        """Number of inner steps; only methods of the gradient family have them, and not in pretraining."""
        assert self.components.resolved.learner is not None
        options: Any = self.components.resolved.learner.config
        return 0 if self.chosen.pretrains else getattr(options, "steps", 0)

    def batch(self) -> Task:
        """Return random tasks `[tasks, ...]`."""
        batch = replace(self.episodes, tasks=self.tasks, dtype=self.dtype).batch()
        if not self.chosen.pretrains:
            return batch
        draw = torch.Generator().manual_seed(3)
        numbers = torch.stack([torch.randperm(TRAINING_CLASSES, generator=draw) for _ in range(self.tasks)])
        return batch._replace(classes=numbers[:, : self.spec.outputs])

    def drawn(self, plain: Plain) -> list[tuple[Tensor, ...]]:
        """Return the random numbers of each task, as further arguments of the loss."""
        draws, batch = self.chosen.draws, self.batch()
        if draws is None:
            return [()] * self.tasks
        return [(draws(task_key(i), one_task(batch, i), plain),) for i in range(self.tasks)]

    @cached_property
    def components(self) -> Components:
        """The plugins of a run, with their options."""
        curves = self.episodes.kind == "regression"
        settings = {**self.chosen.settings, **({} if curves else self.chosen.images)}
        settings["dataset"] = {"name": "sinusoid" if curves else "glyphs"}
        if self.chosen.backbone:
            options = settings.get("backbone", {}) | self.episodes.options
            settings["backbone"] = {"name": self.episodes.backbone, **options}
        return Components(resolve([Layer("benchmark", settings)], scan()))

    def learner(self) -> Learner:
        """Return MetaForge's learner as it is at the start of a training."""
        return self.components.learner(self.spec).during(0.0)

    def values(self, learner: Learner) -> Params:
        """Return values a little beside the initial ones, of which some have a special structure: zeros, identities."""
        draw = torch.Generator().manual_seed(2)
        params, state = split_state({name: value.double() for name, value in learner.init(make_key(0)).items()})
        moved = {
            name: value + 0.01 * torch.randn(value.shape, generator=draw, dtype=torch.float64)
            for name, value in params.items()
        }
        return {name: value.to(self.dtype) for name, value in (moved | state).items()}

    def plain(self) -> Plain:
        """Return the network of torch's own layers, and the options of the method."""
        resolved, spec = self.components.resolved, self.spec
        assert resolved.learner is not None
        options: Any = resolved.learner.config
        model: Model | None = getattr(self.learner(), "model", None)
        build = nn.Identity if model is None else self.components.backbone_maker(spec)
        if model is not None and model.head:
            outputs = len(model.init(make_key(0))[model.head[0]])
            build = with_head(build, outputs, spec.x_shape)
        context = {"context": options.context} if self.method == "cavia" else {}
        module = build(**context)
        adapters = {choice.name: choice.config for choice in resolved.adapters}
        regularizers = {choice.name: choice.config for choice in resolved.regularizers}
        return Plain(module.to(self.dtype).train(), self.episodes.criterion, options, adapters, regularizers)


def metaforge(work: LearnerWork, *, plan: str = "auto", compiled: bool = False) -> Gradients:
    """Return the gradient function of MetaForge."""
    learner = work.learner()
    values, regularizers = work.values(learner), work.components.regularizers
    names = [*split_state(values)[0]]
    # fmt: off
    return step_gradients(learner, work.spec, values, work.batch(), names, plan=plan, compiled=compiled,
                          regularizers=regularizers)
    # fmt: on


def plain_loop(work: LearnerWork, plain: Plain | None = None) -> Gradients:
    """Return the gradient function of a loop over tasks in plain PyTorch."""
    plain, method, batch = plain or work.plain(), work.chosen, work.batch()
    params, state = split_state(work.values(work.learner()))
    drawn = work.drawn(plain)
    for value in params.values():
        value.requires_grad_()

    def gradients() -> list[Tensor]:
        for value in params.values():
            value.grad = None
        kept = []
        for index in range(work.tasks):
            result = method.loss(params | state, one_task(batch, index), plain, *drawn[index])
            if method.combine is None:
                (result / work.tasks).backward()
            else:
                kept.append(result)
        if method.combine is not None:
            method.combine(torch.stack(kept), plain).backward()
        return [torch.zeros_like(value) if value.grad is None else value.grad for value in params.values()]

    return gradients


def contestants(work: LearnerWork) -> tuple[dict[str, Make], dict[str, Make]]:
    """Return makers of the gradients of the plain loop and of MetaForge, by name."""
    ours = {"MetaForge": partial(metaforge, work), "MetaForge compiled": partial(metaforge, work, compiled=True)}
    return {"a plain loop": partial(plain_loop, work)}, ours


CONV4 = Work("classification", (1, 28, 28), TaskShape(5, 1, 5), "conv4", {"variant": "stride"}, 8, steps=0, lr=0.0)
# A stream of 15 examples.
STREAM = replace(CONV4, shape=TaskShape(5, 1, 2))
SINUSOID = Work("regression", (1,), TaskShape(1, 10, 10), "mlp", {}, tasks=25, steps=0, lr=0.0)
# One batch of 60 classes with two images each, as pretraining suggests.
BATCH = replace(CONV4, shape=TaskShape(60, 1, 1), tasks=1)


def _cases() -> Iterator[tuple[str, Case]]:
    for name, method in METHODS.items():
        images = BATCH if method.pretrains else STREAM if method.streams else CONV4
        for network, goal in method.networks.items():
            episodes = SINUSOID if network == "sinusoid" else replace(images, options={"variant": method.variant})
            work = LearnerWork(name, episodes, episodes.tasks)
            yield f"{name}-{network}", Case(f"{name}, {network}", work, goal, 1)


CASES: Mapping[str, Case] = dict(_cases())


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of each case."""
    for name, record in compare("learners", CASES, contestants, only, rounds):
        work: LearnerWork = CASES[name].work
        tables = [work.chosen.settings.get(table, ()) for table in ("adapters", "regularizers")]
        method = " + ".join([work.chosen.settings["learner"]["name"], *tables[0], *tables[1]])
        method += f", {work.chosen.remark}" if work.chosen.remark else ""
        network = work.episodes.backbone if work.chosen.backbone else "its own"
        facts = {"method": method, "network": network, "tasks": work.tasks, "steps": work.steps}
        yield name, {**record, **facts}
