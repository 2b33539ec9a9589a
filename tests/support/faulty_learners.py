"""Correct learners, and variants of them with one fault each, which the checks of the conformance kit must find."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from metaforge.authoring.descent import Adjoint
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.keys import fold_in, normal
from metaforge.authoring.kinds import score
from metaforge.authoring.losses import cross_entropy, one_hot
from metaforge.authoring.model import Model
from metaforge.authoring.progress import training_progress
from metaforge.authoring.protocols import SHARE, Aux, Examples, Key, Learner, Options, Params, Parts, Tags, Task
from metaforge.testing.toy import ToyLearner


class Centres(Learner):
    """A correct learner without adaptation steps: logits from the class centres of the network's features."""

    Config = Options
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False)
    defaults: ClassVar = {"classification": {"task": {"ways": 3}}}

    def __init__(self, config: Options, parts: Parts) -> None:
        self.ways = parts.spec.outputs
        self.model = Model(parts.backbone, norm="running")
        self.norm, self.transductive = self.model.norm, self.model.transductive

    def init(self, key: Key) -> Params:
        return self.model.init(key)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        members = one_hot(support.y, self.ways, support.x.dtype)
        features = self.model(values, support.x).flatten(1)
        return {"centres": members.T @ features / members.sum(0).unsqueeze(-1)}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return self.model(values, x).flatten(1) @ fast["centres"].T

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        return cross_entropy(self.predict(values, self.adapt(values, task.support), task.query.x), task.query.y), Aux(
            {}
        )


class Untrained(Learner):
    """A correct learner without values: compares a query with the support examples themselves."""

    Config = Options
    tags: ClassVar[Tags] = Tags(fixed_ways=False)

    def __init__(self, config: Options, parts: Parts) -> None:
        self.ways = parts.spec.outputs

    def init(self, key: Key) -> Params:
        return {}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Examples:
        return support

    def predict(self, values: Params, fast: Examples, x: Tensor, *, key: Key | None = None) -> Tensor:
        similarity = -(x.flatten(1).unsqueeze(1) - fast.x.flatten(1)).square().sum(-1)
        return similarity @ one_hot(fast.y, self.ways, similarity.dtype)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        logits = self.predict(values, self.adapt(values, task.support), task.query.x)
        change = {name: torch.ones_like(value) for name, value in values.items()}
        return cross_entropy(logits, task.query.y), Aux(
            {"score": score("classification", logits, task.query.y)}, change
        )


class Right(ToyLearner):
    """A correct learner with adaptation steps."""

    defaults: ClassVar = {
        kind: {"adapters": {"sgd": {}}, "backbone": {"name": "mlp"}} for kind in ("classification", "regression")
    }


class Level(Learner):
    """A correct learner for regression only, without a network: the mean target plus a learned offset."""

    Config = Options
    tags: Tags = Tags(kinds=frozenset({"regression"}), fixed_ways=False)

    def __init__(self, config: Options, parts: Parts) -> None: ...

    def init(self, key: Key) -> Params:
        return {"offset": torch.ones(())}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Tensor:
        return support.y.mean(0) + values["offset"]

    def predict(self, values: Params, fast: Tensor, x: Tensor, *, key: Key | None = None) -> Tensor:
        return fast.expand(len(x), -1)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        errors = self.predict(values, self.adapt(values, task.support), task.query.x) - task.query.y
        return errors.square().mean(), Aux({})


class Certain(Level):
    """Predicts deviations of zero."""

    def deviation(self, values: Params, fast: Tensor, x: Tensor) -> Tensor:
        return torch.zeros(len(x), len(fast))


class Nested(Options):
    """Options with a field of their own type."""

    width: int = Field(3, ge=1, description="a width")
    inside: Nested | None = Field(None, description="the same once more")


class Recursive(Centres):
    """A correct learner whose options have a field of their own type."""

    Config = Nested


class OtherWords(Centres):
    """Has another name for an argument of `predict` than the protocol."""

    def predict(self, values: Params, fast: Params, inputs: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, inputs)


class Mute(Centres):
    pass


class Undescribed(Centres):
    """Has an option without a description."""

    class Config(Options):
        size: int = Field(3, ge=1)


class Unbounded(Centres):
    """Has a numeric option without bounds."""

    class Config(Options):
        sizes: tuple[int, ...] = Field((3,), description="sizes of something")


class Lenient(Centres):
    """Accepts unknown options."""

    class Config(BaseModel):
        pass


class Misled(Centres):
    """Has a default for a setting that does not exist."""

    defaults: ClassVar = {"classification": {"train": {"speed": 3}}}


class GlobalInit(Centres):
    """Draws initial values from torch's global generator."""

    def init(self, key: Key) -> Params:
        return super().init(key) | {"scale": torch.rand(3)}


class Keyless(Centres):
    """Returns different values from every call of `init` with the same key."""

    calls = 0

    def init(self, key: Key) -> Params:
        self.calls += 1
        return super().init(fold_in(key, self.calls))


class Counting(Centres):
    """Has an integer tensor in its values."""

    def init(self, key: Key) -> Params:
        return super().init(key) | {"count": torch.zeros((), dtype=torch.int64)}


class Sideways(Centres):
    """Returns predictions `[outputs, n]` instead of `[n, outputs]`."""

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, x).T


class Hardcoded(Centres):
    """Predicts three classes, however many there are."""

    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=True)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, x)[:, :3]


class Single(Centres):
    """Returns float32 predictions for float64 inputs."""

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, x).float()


class UnknownState(Centres):
    """Returns a change of a state entry that `init` does not return."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(state={"state.seen": torch.ones(())})


class Tally(Centres):
    """Returns a metric that is not a scalar."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(metrics={"each": task.query.y.double()})


class Rough(Centres):
    """Changes the inputs in place."""

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        support.x.mul_(0.5)
        return super().adapt(values, support)


class Mindful(Centres):
    """Uses a tensor of the previous task."""

    before: Tensor | None = None

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        fast = super().adapt(values, support)
        before, self.before = self.before, fast["centres"]
        return fast if before is None else {"centres": fast["centres"] + 0.01 * before}


class GlobalNoise(Centres):
    """Draws the noise of its loss from the global generator."""

    tags: Tags = replace(Centres.tags, stochastic=True)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss * (1 + 0.1 * torch.rand(())), aux


class Backward(Centres):
    """Sets `requires_grad` on the values that it receives."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        for value in values.values():
            value.requires_grad_()
        return super().loss(values, task, key)


class Leaking(Centres):
    """Shifts its predictions by the query labels that its loss has seen."""

    seen: Tensor | None = None

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        self.seen = one_hot(task.query.y, self.ways, task.query.x.dtype)
        return super().loss(values, task, key)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        logits = super().predict(values, fast, x)
        return logits if self.seen is None else logits + self.seen


class Borrowing(Right):
    """Normalises by the statistics of the other queries, but declares that it is not transductive."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.transductive = False


class Boasting(Centres):
    """Declares that it is transductive, but its predictions do not depend on the other queries."""

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts)
        self.transductive = True


class Ordered(Centres):
    """Adds a term to each prediction that depends on the position of the query."""

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        logits = super().predict(values, fast, x)
        return logits + torch.arange(len(x), dtype=logits.dtype).unsqueeze(-1) * logits[:1]


class Noisy(Centres):
    """Draws noise in its loss, but declares that it does not."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss * (1 + 0.1 * normal(key, (), loss.dtype)), aux


class Silent(Centres):
    """Declares that its loss draws noise, but draws none."""

    tags: Tags = replace(Centres.tags, stochastic=True)


class Stubborn(Right):
    """Ignores the argument `steps` of `adapt`."""

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        return super().adapt(values, support, steps=1)


class Secret(Right):
    """Adapts in steps, but declares that it does not."""

    tags: Tags = replace(Right.tags, adapts=False)


class Boundless(Right):
    """Has a fixed number of outputs, but declares that it accepts any number of ways."""

    tags: Tags = replace(Right.tags, fixed_ways=False)


class Hoarder(Centres):
    """Stores a learned tensor on the instance instead of in the values."""

    scale: Tensor = torch.ones(())

    def init(self, key: Key) -> Params:
        self.scale = 1 + normal(key, ()).abs()
        return super().init(key)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, x) * self.scale.to(x)


class Impulsive(Centres):
    """Multiplies its loss by the number of calls, which is one per batch under vmap and one per task in a loop."""

    calls = 0

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        self.calls += 1
        loss, aux = super().loss(values, task, key)
        return loss * self.calls, aux


class Branching(Centres):
    """Branches on the value of a tensor, which vmap cannot trace."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return (loss if float(loss) > 1.0 else 2 * loss), aux


class FirstOrder(Right):
    """Uses first-order gradients, but declares an exact meta-gradient."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.adjoint = Adjoint("first-order")


class Detached(Centres):
    """Detaches its values, so that their gradient is zero."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        return super().loss({name: value.detach() for name, value in values.items()}, task, key)


class Climbing(Right):
    """Ascends the support loss in the inner loop."""

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        loss, state = super().support_loss(values, batch, step, key)
        return -loss, state


class Thawing(Right):
    """Adapts what is frozen."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts._replace(frozen=()))


class Unlearning(Centres):
    """Returns the negative of its loss."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return -loss, aux


class Dividing(Centres):
    """Divides its loss by the share of the training that is done, which is 0 at its start."""

    def init(self, key: Key) -> Params:
        return super().init(key) | training_progress()

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss / values[SHARE], aux


class Restarting(Centres):
    """Returns a new learner before every step."""

    def during(self, share: float) -> Learner:
        return copy(self)


class Dropping(Centres):
    """Returns a learner without the values of its network."""

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts)
        self.late = Level(config, parts)

    def during(self, share: float) -> Learner:
        return self if share < 0.5 else self.late


class Promising(Right):
    """Does not give the terms that its tags promise."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(terms={})


class Wasteful(Right):
    """Computes a term that no regularizer reads."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(terms=aux.terms | {"loss_before": loss})


class Unlinked(Right):
    """Gives terms that are detached from the parameters."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(terms={name: term.detach() for name, term in aux.terms.items()})


class Shifty(Right):
    """Needs other components with its default options than its class says."""

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.tags = replace(self.tags, needs=frozenset({"backbone"}))


class Untagged(Centres):
    """Has tags of a wrong type."""

    def __init__(self, config: Options, parts: Parts) -> None:
        super().__init__(config, parts)
        self.tags = {"adapts": False}  # type: ignore[assignment]


class Unconverging(FirstOrder):
    """Uses first-order gradients, but declares that they are exact after a few steps."""

    tags: Tags = replace(Right.tags, converges_at=3)


class Stepless(Centres):
    """Declares that its gradient is exact at convergence, but has no option for the number of steps."""

    tags: Tags = replace(Centres.tags, converges_at=3)


# (check that must fail, learner)
class Rectangular(Centres):
    """Takes the support set for equally many examples of each class, although its tag says that it need not be."""

    tags: ClassVar[Tags] = replace(Centres.tags, varied_shots=True)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        order = support.y.argsort(stable=True)
        features = self.model(values, support.x).flatten(1)[order]
        return {"centres": features.reshape(self.ways, -1, features.shape[-1]).mean(1)}


class Tallying(Centres):
    """Logs a metric under a name that depends on the shots."""

    tags: ClassVar[Tags] = replace(Centres.tags, varied_shots=True)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, _ = super().loss(values, task, key)
        return loss, Aux({f"loss_of_{len(task.support.y)}": loss.detach()})


class Numerologist(Centres):
    """Reads the numbers of the classes without saying so."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss * (1 + len(task.classes)), aux


class Indifferent(Centres):
    """Says that it reads the numbers of the classes, and does not."""

    tags: ClassVar[Tags] = replace(Centres.tags, uses_classes=True)


FAULTS: list[tuple[str, type[Learner]]] = [
    ("contract", OtherWords),
    ("summary", Mute),
    ("config", Undescribed),
    ("config", Unbounded),
    ("config", Lenient),
    ("defaults", Misled),
    ("init", GlobalInit),
    ("init", Keyless),
    ("init", Counting),
    ("frozen", Thawing),
    ("shapes", Sideways),
    ("shapes", Hardcoded),
    ("shapes", Certain),
    ("shapes", Single),
    ("shapes", UnknownState),
    ("shapes", Tally),
    ("pure", Rough),
    ("pure", Mindful),
    ("pure", GlobalNoise),
    ("pure", Backward),
    ("no-leak", Leaking),
    ("transductive", Borrowing),
    ("transductive", Boasting),
    ("query-order", Ordered),
    ("stochastic", Noisy),
    ("stochastic", Silent),
    ("tags", Shifty),
    ("tags", Untagged),
    ("steps", Stubborn),
    ("steps", Secret),
    ("ways", Boundless),
    ("checkpoint", Hoarder),
    ("vectorised", Impulsive),
    ("vectorised", Branching),
    ("meta-gradient", FirstOrder),
    ("meta-gradient", Detached),
    ("progress", Dividing),
    ("during", Restarting),
    ("during", Dropping),
    ("terms", Promising),
    ("terms", Wasteful),
    ("terms", Unlinked),
    ("meta-gradient", Unconverging),
    ("meta-gradient", Stepless),
    ("adapts", Climbing),
    ("learns", Unlearning),
    ("learns", Detached),
    ("varied-shots", Rectangular),
    ("varied-shots", Tallying),
    ("uses-classes", Numerologist),
    ("uses-classes", Indifferent),
]
