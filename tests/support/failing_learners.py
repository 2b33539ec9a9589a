"""A learner whose code fails while a run computes: in a method, and from a call on, that its options name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import metaforge
from metaforge.authoring import Aux, Key, Params, Task
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.registry.scan import scan
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyLearner, ToyNet


def _raises(kind: type[BaseException], *arguments: object) -> Callable[..., Any]:
    def fail(*inputs: object) -> Any:
        raise kind(*arguments)

    return fail


def _recurses(*inputs: object) -> Any:
    return _recurses(*inputs)


def _changes(*inputs: Any) -> Any:
    inputs[1].support.x.mul_(0.5)


def _changes_values(*inputs: Any) -> Any:
    with torch.no_grad():
        next(iter(inputs[0].values())).mul_(0.5)


# What happens at a place; a result that is not None is returned in place of the learner's own.
FAULTS: dict[str, Callable[..., Any]] = {
    "SystemExit": _raises(SystemExit, 0),
    "GeneratorExit": _raises(GeneratorExit),
    "AssertionError": _raises(AssertionError, "mine"),
    "StopIteration": _raises(StopIteration, "mine"),
    "BrokenPipeError": _raises(BrokenPipeError, "mine"),
    "RecursionError": _recurses,
    "changed task": _changes,
    "changed values": _changes_values,
    "added value": lambda *inputs: inputs[0].update(mine=torch.ones(())),
    "wrong type": lambda *inputs: 3,
    "meta tensor": lambda *inputs: torch.zeros(75, 5, device="meta"),
}
RETURNED: Mapping[str, Callable[[Tensor, Aux], Any]] = {
    "None": lambda loss, aux: None,
    "loss alone": lambda loss, aux: loss,
    "detached loss": lambda loss, aux: (loss.detach(), aux),
    "constant loss": lambda loss, aux: (torch.ones((), requires_grad=True) * 1, aux),
    "meta loss": lambda loss, aux: (torch.zeros((), device="meta"), aux),
    "vector loss": lambda loss, aux: (loss.expand(2), aux),
    "integer loss": lambda loss, aux: (torch.zeros((), dtype=torch.int64), aux),
    "number as a metric": lambda loss, aux: (loss, Aux({"score": 0.5})),  # type: ignore[dict-item]
    "vector as a metric": lambda loss, aux: (loss, Aux({"score": loss.detach().expand(3)})),
    "meta tensor as a metric": lambda loss, aux: (loss, Aux({"score": torch.zeros((), device="meta")})),
    "unknown state": lambda loss, aux: (loss, Aux({}, {"state.mine": loss.detach()})),
}


class Failing(ToyLearner):
    """A toy learner that fails as its options say."""

    class Config(InnerLoopOptions):
        place: str = Field(default="loss", description="The method that fails.")
        fault: str = Field(default="", description="How it fails: a key of FAULTS or RETURNED.")
        call: int = Field(default=1, ge=1, description="The call of the method, from 1, that fails.")

    def __init__(self, config: Any, parts: Any) -> None:
        super().__init__(config, parts)
        self.fault = config
        self.calls: dict[str, int] = {}

    def _fails(self, place: str) -> bool:
        self.calls[place] = self.calls.get(place, 0) + 1
        return self.fault.place == place and self.calls[place] >= self.fault.call

    def init(self, key: Key) -> Params:
        result = FAULTS[self.fault.fault]() if self._fails("init") else None
        return super().init(key) if result is None else result

    def adapt(self, values: Params, support: Any, *, steps: int | None = None, key: Key | None = None) -> Any:
        result = FAULTS[self.fault.fault](values, Task(support, support)) if self._fails("adapt") else None
        return super().adapt(values, support, steps=steps, key=key) if result is None else result

    def predict(self, values: Params, fast: Any, x: Tensor, *, key: Key | None = None) -> Tensor:
        result = FAULTS[self.fault.fault](values, None) if self._fails("predict") else None
        return super().predict(values, fast, x, key=key) if result is None else result

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        if self._fails("loss") and self.fault.fault in FAULTS:
            result = FAULTS[self.fault.fault](values, task)
            if result is not None:
                return result
        loss, aux = super().loss(values, task, key)
        if self.fault.place == "loss" and self.fault.fault in RETURNED:
            return RETURNED[self.fault.fault](loss, aux)
        return loss, aux

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        result = FAULTS[self.fault.fault](values, task) if self._fails("measure") else None
        return {} if result is None else result


def train_failing(
    out: Path, *, place: str, fault: str, call: int = 1, replacing: Any = None, **settings: Any
) -> metaforge.Run:
    """Train a failing learner on toy tasks for four steps of two tasks; `replacing` is (kind, name, class)."""
    registry = scan().with_plugin("learner", "failing", Failing).with_plugin("dataset", "toy", ToyClasses)
    registry = registry.with_plugin("backbone", "net", ToyNet).with_plugin("adapter", "descent", ToyDescent)
    registry = registry if replacing is None else registry.with_plugin(*replacing)
    engine = {"threads": 1, "compile": "off", **settings.pop("engine", {})}
    return metaforge.train(
        {"name": "failing", "place": place, "fault": fault, "call": call},
        "toy",
        backbone="net",
        adapters=["descent"],
        steps=4,
        tasks=2,
        out=out,
        settings={"engine": engine, "evaluate": {"tasks": 2}, **settings},
        registry=registry,
    )
