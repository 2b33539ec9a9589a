"""The same meta-gradient, computed by MetaForge, by a plain loop and by other libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.metaforge_step import Gradients, step_gradients
from metaforge.authoring import Examples
from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.backbones.conv4 import Conv4
from metaforge_plugins.backbones.mlp import MLP
from metaforge_plugins.learners.gradient.maml import MAML


@dataclass(frozen=True)
class Work:
    """A second-order meta-gradient: of the mean query loss after `steps` inner steps of gradient descent."""

    kind: Literal["classification", "regression"]
    x_shape: tuple[int, ...]
    shape: TaskShape
    backbone: str
    options: Mapping[str, Any]
    tasks: int
    steps: int
    lr: float
    dtype: torch.dtype = torch.float32

    @property
    def quick(self) -> bool:
        """Whether a step is compiled within seconds."""
        return self.kind == "regression"

    @property
    def spec(self) -> TaskSpec:
        """The spec of the tasks."""
        return TaskSpec(self.kind, self.x_shape, 1 if self.kind == "regression" else self.shape.ways, self.shape)

    def body(self) -> nn.Module:
        """Return the network without its head."""
        cls: Any = {"conv4": Conv4, "mlp": MLP}[self.backbone]
        built: nn.Module = cls(cls.Config(**self.options)).build(self.spec)
        return built

    def module(self) -> nn.Module:
        """Return the network of torch's own layers, each time with the same initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(0)
            return with_head(self.body, self.spec.outputs, self.x_shape)().to(self.dtype).train()

    def batch(self) -> Task:
        """Return random tasks `[tasks, ...]`."""
        draw = torch.Generator().manual_seed(1)

        def examples(each: int) -> Any:
            n = self.shape.ways * each
            x = torch.randn(self.tasks, n, *self.x_shape, generator=draw, dtype=self.dtype)
            if self.kind == "regression":
                return Examples(x, x.sin())
            y = torch.arange(self.shape.ways).repeat_interleave(each).expand(self.tasks, -1).contiguous()
            return Examples(x, y)

        return Task(examples(self.shape.shots), examples(self.shape.queries))

    def criterion(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of predictions."""
        return (
            nn.functional.mse_loss(prediction, y)
            if self.kind == "regression"
            else nn.functional.cross_entropy(prediction, y)
        )


def metaforge(work: Work, *, plan: str = "auto", compiled: bool = False, chunk: int | None = None) -> Gradients:
    """Return the gradient function of MetaForge."""
    chain = Chain({"sgd": SGD(SGDOptions(lr=work.lr))})
    learner = MAML(MAML.Config(steps=work.steps, adapt="all"), Parts(work.spec, work.body, chain))
    own = {f"model.{name}": value.detach() for name, value in work.module().named_parameters()}
    values = {name: own.get(name, value.to(work.dtype)) for name, value in learner.init(make_key(0)).items()}
    return step_gradients(learner, work.spec, values, work.batch(), [*own], plan=plan, chunk=chunk, compiled=compiled)


def plain_loop(work: Work) -> Gradients:
    """Return the gradient function of a loop over tasks in plain PyTorch."""
    module, batch = work.module(), work.batch()

    def gradients() -> list[Tensor]:
        module.zero_grad()
        params = dict(module.named_parameters())
        for index in range(work.tasks):
            task, fast = one_task(batch, index), params
            for _ in range(work.steps):
                loss = work.criterion(functional_call(module, fast, (task.support.x,)), task.support.y)
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {name: value - work.lr * g for (name, value), g in zip(fast.items(), grads, strict=True)}
            query = work.criterion(functional_call(module, fast, (task.query.x,)), task.query.y)
            (query / work.tasks).backward()
        return [value.grad.clone() for value in params.values() if value.grad is not None]

    return gradients


def higher_loop(work: Work) -> Gradients:
    """Return the gradient function of a loop over tasks with `higher`."""
    import higher

    module, batch = work.module(), work.batch()
    inner = torch.optim.SGD(module.parameters(), lr=work.lr)

    def gradients() -> list[Tensor]:
        module.zero_grad()
        for index in range(work.tasks):
            task = one_task(batch, index)
            with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (network, optimizer):
                for _ in range(work.steps):
                    optimizer.step(work.criterion(network(task.support.x), task.support.y))
                (work.criterion(network(task.query.x), task.query.y) / work.tasks).backward()
        return [value.grad.clone() for value in module.parameters() if value.grad is not None]

    return gradients


def torchopt_loop(work: Work) -> Gradients:
    """Return the gradient function of a loop over tasks with `torchopt`."""
    import torchopt

    module, batch = work.module(), work.batch()
    inner = torchopt.MetaSGD(module, lr=work.lr)

    def gradients() -> list[Tensor]:
        params = list(module.parameters())
        for value in params:
            value.grad = None
        network = torchopt.extract_state_dict(module, by="reference")
        optimizer = torchopt.extract_state_dict(inner, by="reference")
        for index in range(work.tasks):
            task = one_task(batch, index)
            for _ in range(work.steps):
                inner.step(work.criterion(module(task.support.x), task.support.y))
            (work.criterion(module(task.query.x), task.query.y) / work.tasks).backward()
            torchopt.recover_state_dict(module, network)
            torchopt.recover_state_dict(inner, optimizer)
        return [value.grad.clone() for value in params if value.grad is not None]

    return gradients


def learn2learn_loop(work: Work) -> Gradients:
    """Return the gradient function of a loop over tasks with `learn2learn`."""
    import learn2learn

    maml = learn2learn.algorithms.MAML(copy.deepcopy(work.module()), lr=work.lr, first_order=False)
    batch = work.batch()

    def gradients() -> list[Tensor]:
        maml.zero_grad()
        for index in range(work.tasks):
            task, clone = one_task(batch, index), maml.clone()
            for _ in range(work.steps):
                clone.adapt(work.criterion(clone(task.support.x), task.support.y))
            (work.criterion(clone(task.query.x), task.query.y) / work.tasks).backward()
        return [value.grad.clone() for value in maml.parameters() if value.grad is not None]

    return gradients


PEERS: Mapping[str, Callable[[Work], Gradients]] = {
    "a plain loop": plain_loop,
    "higher": higher_loop,
    "torchopt": torchopt_loop,
    "learn2learn": learn2learn_loop,
}
