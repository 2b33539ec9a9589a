"""The gradient of a prototypical network on the same episodes, computed by MetaForge and by a plain loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmarks.contestants import Work
from benchmarks.metaforge_step import Gradients, step_gradients
from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.metric.protonet import ProtoNet


@dataclass(frozen=True)
class ProtoWork:
    """Training episodes of a pooled Conv-4/64; support and query set pass through the network in one batch."""

    ways: int = 20
    tasks: int = 4
    queries: int = 15
    dtype: torch.dtype = torch.float32
    # A step is not compiled within seconds.
    quick: ClassVar[bool] = False

    @property
    def episodes(self) -> Work:
        """The tasks and the network, as a `Work`."""
        shape = TaskShape(self.ways, 1, self.queries)
        return Work("classification", (1, 28, 28), shape, "conv4", {"variant": "pool"}, self.tasks, 0, 0.0, self.dtype)

    @property
    def spec(self) -> TaskSpec:
        """The spec of the episodes."""
        return self.episodes.spec

    def body(self) -> nn.Module:
        """Return the embedding network, each time with the same initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(0)
            return self.episodes.body().to(self.dtype).train()


def plain_prototypes(work: ProtoWork) -> Gradients:
    """Return the gradient function of a loop over episodes in plain PyTorch."""
    module, batch = work.body(), work.episodes.batch()

    def gradients() -> list[Tensor]:
        module.zero_grad()
        for index in range(work.tasks):
            task = one_task(batch, index)
            features = module(torch.cat([task.support.x, task.query.x])).flatten(1)
            support, query = features.split([len(task.support.x), len(task.query.x)])
            prototypes = support.reshape(work.ways, -1, support.shape[1]).mean(1)
            logits = -(query.unsqueeze(1) - prototypes.unsqueeze(0)).square().sum(-1)
            (nn.functional.cross_entropy(logits, task.query.y) / work.tasks).backward()
        return [value.grad.clone() for value in module.parameters() if value.grad is not None]

    return gradients


def metaforge_prototypes(work: ProtoWork, *, compiled: bool = False) -> Gradients:
    """Return the gradient function of MetaForge."""
    learner = ProtoNet(ProtoNet.Config(), Parts(work.spec, work.episodes.body))
    own = {f"model.{name}": value.detach() for name, value in work.body().named_parameters()}
    values = {name: own.get(name, value.to(work.dtype)) for name, value in learner.init(make_key(0)).items()}
    return step_gradients(learner, work.spec, values, work.episodes.batch(), [*own], compiled=compiled)
