"""What a run computes and how: its learner on its device, in its precision, by the engine's plan."""

from __future__ import annotations

from typing import Any

import torch

from metaforge import engine, runtime
from metaforge.components import Components
from metaforge.config import Resolved
from metaforge.keys import make_key
from metaforge.protocols import Params, Task


class Computation:
    """The parts of a run, put to work on batches of tasks."""

    def __init__(self, resolved: Resolved) -> None:
        self.settings = resolved.run
        runtime.prepare(resolved.run.engine.threads)
        self.parts = Components(resolved)
        spec = self.parts.training_spec()
        self.learner = self.parts.learner(spec)
        self.device = runtime.choose_device(resolved.run.device)
        self.dtype = self.parts.dtype
        asked = resolved.run.engine
        self.plan = engine.choose_plan(self.learner, asked.plan)
        chunk = engine.choose_chunk(spec, self.device, asked.chunk, training=True)
        self.chunk = min(chunk, resolved.run.train.tasks)

    def environment(self) -> dict[str, Any]:
        """Return what a reader of the results must know: machine, versions, plugins, and how it is computed."""
        chosen = {"device": str(self.device), "plan": self.plan, "chunk": self.chunk}
        return {**runtime.facts(), "plugins": self.parts.provenance(), **chosen}

    def initial(self) -> Params:
        """Return the learner's values before any training."""
        values = self.learner.init(make_key(self.settings.seed, "init"))
        return {name: value.to(self.device, self.dtype) for name, value in values.items()}

    def sample(self, episodes: range) -> Task:
        """Return training episodes `[episodes, ...]`, as the data set gives them."""
        shape, seed = self.parts.training_shape, self.settings.seed
        return self.parts.dataset.sample("train", shape, episodes[0], len(episodes), seed=seed)

    def gradients(self, values: Params, tasks: Task, episodes: range) -> engine.MetaStep:
        """Return the meta-gradient of a batch of training episodes."""
        keys = [make_key(self.settings.seed, "train", episode) for episode in episodes]
        return engine.meta_gradients(
            self.learner,
            values,
            engine.prepare(tasks, self.device, self.dtype),
            torch.stack(keys).to(self.device),
            plan=self.plan,
            chunk=self.chunk,
            regularizers=self.parts.regularizers,
        )

    def validation_scores(self, values: Params, tasks: int) -> list[float]:
        """Return the scores of the first tasks of the validation split."""
        spec = self.parts.dataset.spec("val", self.parts.task_shape)
        tester = self.parts.learner(spec)
        chunk = engine.choose_chunk(spec, self.device, self.settings.engine.chunk, training=False)
        scores: list[float] = []
        for first in range(0, tasks, chunk):
            count = min(chunk, tasks - first)
            batch = self.parts.dataset.sample("val", spec.shape, first, count, seed=self.settings.evaluate.seed)
            batch = engine.prepare(batch, self.device, self.dtype)
            scores += engine.evaluate(tester, values, batch, plan=self.plan).scores.tolist()
        return scores
