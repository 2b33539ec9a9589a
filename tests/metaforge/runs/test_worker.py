"""A worker computes the steps of a run, refuses a setting by which they cannot be computed, and records its choices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import metaforge
from failing_learners import FAULTS, RETURNED, train_failing
from faulty_learners import Untrained
from metaforge import hookimpl
from metaforge.authoring.progress import training_progress
from metaforge.authoring.protocols import (
    SHARE,
    STEP,
    Aux,
    Key,
    Learner,
    Options,
    Params,
    Parts,
    Regularizer,
    Task,
)
from metaforge.config.sources import Layer
from metaforge.engine import plans, processes
from metaforge.engine.probe import Probe
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.scan import scan
from metaforge.runs import worker
from metaforge.runs.resume import configuration
from metaforge.runs.training import run_training
from metaforge.runs.worker import Worker
from metaforge.system import machine
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyLearner, ToyNet
from quick_runs import rows_of

FATAL = [name for name in FAULTS if name not in ("wrong type", "added value")]


class Linear(nn.Module):
    """A linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Branching(Linear):
    """A network that branches on the value of a tensor, which neither `vmap` nor tracing supports."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() if x.abs().mean().item() > 0 else super().forward(x)


class Recurrent(nn.Module):
    """A layer of torch that `vmap` does not support."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(1, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.unsqueeze(1))[0][:, 0]
        return out


class Spread(Regularizer):
    """Adds the variance of the task losses, so that the weight of a task depends on the losses of all tasks."""

    Config = Options

    def __init__(self, config: Options) -> None: ...

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        return losses.var()


class Wrong(Linear):
    """Fails under every plan."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("mine")


def trained(out: Path, backbone: nn.Module | None = None, tasks: int = 2, **engine: Any) -> metaforge.Run:
    settings = {"engine": {"threads": 1, **engine}}
    return metaforge.train("maml", "sinusoid", backbone=backbone, steps=1, tasks=tasks, settings=settings, out=out)


@pytest.mark.parametrize("backbone", [Branching, Recurrent])
@pytest.mark.parametrize("plan", ["fold", "vmap"])
def test_a_plan_by_which_a_network_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, backbone: Callable[[], nn.Module], plan: str
) -> None:
    with pytest.raises(ConfigError, match=f"Plan '{plan}' cannot run MAML: ") as caught:
        trained(tmp_path / "refused", backbone(), plan=plan)
    assert caught.value.where == "engine.plan"
    assert caught.value.remedy == "set engine.plan to loop"
    assert trained(tmp_path / "run", backbone(), plan="loop").summary["steps"] == 1


@pytest.mark.parametrize("backbone", [Branching, Recurrent])
def test_auto_computes_such_a_network_one_task_after_another_and_says_so(
    tmp_path: Path, backbone: Callable[[], nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    module = backbone()
    run = trained(tmp_path / "run", module, plan="auto")
    assert re.search(r"engine.plan is loop\): .* \(in the (layer|module) .* of the network\)", capsys.readouterr().err)
    assert run.evaluate(tasks=2)["results"]
    assert json.loads((tmp_path / "run" / "env.json").read_text())["plan"] == "loop"
    other = trained(tmp_path / "other", module, plan="loop")
    assert all(torch.equal(value, other.values[name]) for name, value in run.values.items())


def test_a_network_that_cannot_be_compiled_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A compiled step cannot run MAML: ") as caught:
        trained(tmp_path / "run", Branching(), plan="loop", compile="on")
    assert (caught.value.where, caught.value.remedy) == ("engine.compile", "set engine.compile to off")


def test_an_error_of_a_network_names_the_backbone_and_the_layer(tmp_path: Path) -> None:
    glyphs = {"name": "glyphs", "train": 60, "val": 5, "test": 5}
    message = (
        r"backbone 'own-wrong' .* RuntimeError in the prediction of the learner 'protonet' .*: mine \(in the module"
    )
    with pytest.raises(PluginError, match=message) as caught:
        metaforge.train("protonet", glyphs, backbone=Wrong(), steps=1, out=tmp_path / "run")
    assert caught.value.where == "backbone"
    assert "metaforge check --backbone MODULE:CLASS" in caught.value.remedy


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("fault", [*FATAL, *RETURNED])
def test_a_learner_that_fails_in_its_loss_is_named_with_the_outer_step(tmp_path: Path, fault: str, plan: str) -> None:
    # The first call of step 3: one is made before the first step; plan `loop` makes one for each of the two tasks of a
    # step, and plan `vmap` one more in the first step.
    call = {"loop": 6, "vmap": 5, "fold": 4}[plan]
    with pytest.raises(PluginError) as caught:
        train_failing(tmp_path / "run", place="loss", fault=fault, call=call, engine={"plan": plan})
    step = 3 if fault in FAULTS else 1
    assert re.match(
        rf"The learner 'failing' of python (raised|breaks).* in its loss at outer step {step}\b", str(caught.value)
    )
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"], status.get("steps", 0)) == ("failed", 4, step - 1)
    assert status["error"] == str(caught.value)


@pytest.mark.parametrize("fault", ["SystemExit", "None", "detached loss", "number as a metric"])
def test_a_learner_that_fails_in_a_compiled_step_is_named(tmp_path: Path, fault: str) -> None:
    if not machine.has_compiler():
        pytest.skip("no C++ compiler")
    # Two calls are made before the first step: of one task, and by `vmap`.
    with pytest.raises(PluginError, match="in its loss at outer step 1"):
        train_failing(tmp_path / "run", place="loss", fault=fault, call=3, engine={"compile": "on"})


@pytest.mark.parametrize("fault", ["SystemExit", "wrong type", "AssertionError"])
def test_a_learner_that_fails_to_return_initial_values_is_named(tmp_path: Path, fault: str) -> None:
    with pytest.raises(PluginError, match=r"The learner 'failing' of python .* in its init"):
        train_failing(tmp_path / "run", place="init", fault=fault)


@pytest.mark.parametrize("fault", FATAL)
@pytest.mark.parametrize("place", ["adapt", "predict"])
def test_a_learner_that_fails_in_a_validation_is_named_with_the_outer_step(
    tmp_path: Path, place: str, fault: str
) -> None:
    if place == "predict" and fault == "changed task":
        pytest.skip("predict receives no task")
    train = {"validate_every": 2, "validate_tasks": 2}
    expected = r"'failing' of python .* in its validation at outer step 2\b"
    with pytest.raises(PluginError, match=expected):
        # The second call: the first one is made before the first step.
        train_failing(tmp_path / "run", place=place, fault=fault, call=2, train=train, engine={"chunk": 1})


@pytest.mark.parametrize("place", ["adapt", "predict"])
def test_a_learner_that_fails_in_its_first_prediction_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(PluginError, match="raised SystemExit in its prediction before the first step: 0"):
        train_failing(tmp_path / "run", place=place, fault="SystemExit")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_is_not_the_learners_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*inputs: object) -> None:
        raise error

    monkeypatch.setitem(FAULTS, "memory", fail)
    with pytest.raises(type(error)):
        train_failing(tmp_path / "run", place="loss", fault="memory", call=2)


class Cheating(ToyClasses):
    """Exits from the second step on."""

    def sample(self, split: str, shape: Any, first: int, count: int, *, seed: int) -> Any:
        if first == 2:
            raise SystemExit(0)
        return super().sample(split, shape, first, count, seed=seed)


class Leaving(ToyDescent):
    """Exits in an inner step."""

    def update(self, *arguments: Any, **named: Any) -> Any:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("kind", "name", "cls", "expected"),
    [
        ("dataset", "toy", Cheating, r"The dataset 'toy' of python raised SystemExit in its sample at outer step 2: 0"),
        (
            "adapter",
            "descent",
            Leaving,
            r"The adapter 'descent' of python raised SystemExit in the prediction of the learner 'failing'",
        ),
    ],
)
def test_the_plugin_at_fault_is_named(tmp_path: Path, kind: str, name: str, cls: type, expected: str) -> None:
    with pytest.raises(PluginError, match=expected):
        train_failing(tmp_path / "run", place="", fault="", replacing=(kind, name, cls))


def test_exact_sums_have_no_more_groups_than_there_are_tasks(tmp_path: Path) -> None:
    one, other = (trained(tmp_path / str(shards), tasks=3, reduce="exact", shards=shards) for shards in (3, 4))
    assert all(torch.equal(value, other.values[name]) for name, value in one.values.items())


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"no GPU for process 2 \(counted from 0\): this machine has 2"):
        machine.choose_device("cuda", 2)


@pytest.mark.parametrize(
    ("requested", "reason"),
    [("auto", "the run is too short to save the time of compilation"), ("off", "engine.compile is off")],
)
def test_the_environment_records_why_a_step_is_not_compiled(tmp_path: Path, requested: str, reason: str) -> None:
    trained(tmp_path / "run", compile=requested)
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (environment["compiled"], environment["not_compiled_because"]) == (False, reason)


def test_a_compiled_step_with_a_regularizer_of_the_task_losses_in_several_chunks_is_refused(tmp_path: Path) -> None:
    registry = scan().with_plugin("regularizer", "spread", Spread)
    settings = {"engine": {"compile": "on", "chunk": 2}}
    with pytest.raises(ConfigError, match="A step with Spread cannot be compiled") as caught:
        metaforge.train(
            "maml", "sinusoid", regularizers=["spread"], settings=settings, registry=registry, out=tmp_path / "run"
        )
    assert caught.value.where == "engine.compile"


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert machine.cores() == 1


class Narrow(ToyLearner):
    """A learner whose predictions have too few columns, which its own loss does not notice."""

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        return super().predict(values, fast, x, key=key)[:, :2]


def test_a_learner_with_too_few_logits_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    registry = scan().with_plugin("learner", "narrow", Narrow).with_plugin("dataset", "toy", ToyClasses)
    options: dict[str, Any] = {"backbone": "mlp", "adapters": ["sgd"], "steps": 1, "registry": registry}
    with pytest.raises(PluginError, match=r"The learner Narrow predicts shape \[75, 2\] for 75 queries and 5 outputs"):
        metaforge.train("narrow", "toy", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_first_task_is_predicted_once_per_run(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(ToyLearner):
        def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
            calls.append(len(x))
            return super().predict(values, fast, x, key=key)

    registry = scan().with_plugin("learner", "counting", Counting).with_plugin("dataset", "toy", ToyClasses)
    options: dict[str, Any] = {"backbone": "mlp", "adapters": ["sgd"], "steps": 3, "registry": registry}
    metaforge.train("counting", "toy", out=tmp_path / "run", settings={"engine": {"compile": "off"}}, **options)
    assert calls == [75]


class Phased(ToyLearner):
    """Has another learner for the second half of the training, whose loss is twice as large."""

    asked: ClassVar[list[float]] = []

    def __init__(self, config: Any, parts: Parts) -> None:
        super().__init__(config, parts)
        self.late = Doubled(config, parts)

    def during(self, share: float) -> Any:
        self.asked.append(share)
        return self if share < 0.5 else self.late


class Doubled(ToyLearner):
    """The late phase of the learner above."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return 2 * loss, aux


def in_phases(out: Path, cls: type[Any], settings: dict[str, Any] | None = None, steps: int = 4) -> list[float]:
    """Train a learner on toy tasks without a change of its parameters, and return the loss of every step."""
    registry = scan().with_plugin("learner", "phased", cls).with_plugin("dataset", "toy", ToyClasses)
    registry = registry.with_plugin("backbone", "toy-net", ToyNet)
    engine = {"threads": 1, "compile": "off"} | (settings or {})
    options: dict[str, Any] = {"backbone": "toy-net", "adapters": ["sgd"], "steps": steps, "registry": registry}
    train = {"log_every": 1, "lr": 1e-12, "tasks": 1}
    metaforge.train("phased", "toy", out=out, settings={"engine": engine, "train": train}, **options)
    return [row["loss"] for row in rows_of(out)]


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_the_learner_of_a_phase_takes_its_steps(tmp_path: Path, plan: str) -> None:
    Phased.asked.clear()
    found, plain = in_phases(tmp_path / "a", Phased, {"plan": plan}), in_phases(tmp_path / "b", ToyLearner)
    assert Phased.asked == [0.0, 0.25, 0.5, 0.75]
    assert found == pytest.approx([plain[0], plain[1], 2 * plain[2], 2 * plain[3]], rel=1e-5)


def test_a_phase_is_planned_for_its_own_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    decide, step = plans.decide, worker.mixed_gradients

    def watched(learner: Any, *arguments: Any, **named: Any) -> Any:
        late = isinstance(learner, Doubled)
        decision = decide(learner, *arguments, **{**named, "probe": Probe(("layer_norm",) if late else ())})
        seen.append(f"planned {type(learner).__name__}: {decision.plan}")
        return decision

    def taken(batch: Any, *arguments: Any, **named: Any) -> Any:
        (shaped,) = batch
        seen.append(f"{type(shaped.learner).__name__} by {named['plan']}")
        return step(batch, *arguments, **named)

    monkeypatch.setattr(plans, "decide", watched)
    monkeypatch.setattr(worker, "mixed_gradients", taken)
    in_phases(tmp_path / "run", Phased)
    early, late = ["planned Phased: fold", *2 * ["Phased by fold"]], ["planned Doubled: vmap", *2 * ["Doubled by vmap"]]
    assert seen == early + late
    # The environment records the plan of the run's own learner, in a resumed run too.
    assert json.loads((tmp_path / "run" / "env.json").read_text())["plan"] == "fold"


def test_a_compiled_step_follows_the_progress_and_the_phases(tmp_path: Path) -> None:
    if not machine.has_compiler():
        pytest.skip("no C++ compiler")

    class Scaled(Learner):
        """The progress times the distance of a parameter from 3, and in the late phase from 5."""

        Config, centre = Options, 3.0

        def __init__(self, config: Options, parts: Parts) -> None:
            self.outputs = parts.spec.outputs
            if self.centre == 3.0:
                self.late = Late(config, parts)

        def init(self, key: Key) -> Params:
            return {"w": torch.ones(())} | training_progress()

        def adapt(self, values: Params, support: Any, *, steps: int | None = None, key: Key | None = None) -> Tensor:
            return values["w"]

        def predict(self, values: Params, fast: Tensor, x: Tensor, *, key: Key | None = None) -> Tensor:
            return fast.expand(len(x), self.outputs)

        def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
            distance = (self.centre - values["w"]) ** 2
            return (values[STEP] + values[SHARE]) * distance + 0 * task.query.x.sum(), Aux({})

        def during(self, share: float) -> Learner:
            return self.late if share >= 0.5 else self

    class Late(Scaled):
        """The late phase."""

        centre = 5.0

    registry = scan().with_plugin("learner", "scaled", Scaled).with_plugin("dataset", "toy", ToyClasses)
    losses = []
    for compiled in ("off", "on"):
        settings = {"engine": {"threads": 1, "compile": compiled}, "train": {"log_every": 1, "lr": 1e-12, "tasks": 2}}
        run = metaforge.train("scaled", "toy", steps=4, settings=settings, registry=registry, out=tmp_path / compiled)
        losses.append([row["loss"] for row in rows_of(tmp_path / compiled)])
        assert (run.values[STEP], run.values[SHARE]) == (4, 1)
    assert losses[0] == pytest.approx([0, 1.25 * 4, 2.5 * 16, 3.75 * 16])
    assert losses[1] == pytest.approx(losses[0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda parts: None,
            "breaks its contract in its during at outer step 3: it returns an object of type NoneType",
        ),
        (lambda parts: nn.Tanh(), "at outer step 3: it returns an object of type Tanh, which is no learner"),
        (
            lambda parts: ToyLearner(ToyLearner.Config(), parts._replace(backbone=lambda: nn.Linear(6, 3))),
            "at outer step 3: the values of ToyLearner differ in names or shapes: model",
        ),
        (lambda parts: 1 / 0, "raised ZeroDivisionError in its during at outer step 3"),
    ],
)
def test_what_is_no_learner_of_the_same_values_is_refused(tmp_path: Path, returned: Any, message: str) -> None:
    class Wrong(ToyLearner):
        """Returns something else in the second half of the training."""

        def __init__(self, config: Any, parts: Parts) -> None:
            super().__init__(config, parts)
            self.parts = parts

        def during(self, share: float) -> Any:
            return self if share < 0.5 else returned(self.parts)

    with pytest.raises(PluginError, match=message) as caught:
        in_phases(tmp_path / "run", Wrong)
    assert caught.value.where.endswith("Wrong")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 4


def stepped(out: Path, tasks: int, accumulate: int, **more: Any) -> metaforge.Run:
    """Return a run of four steps in float64, with the mean change of the running statistics of batch norm."""
    settings = {
        "train": {"accumulate": accumulate, "log_every": 2, "ways": 5, "queries": 2},
        "engine": {"threads": 1, "dtype": "float64", "plan": "fold"},
        "learner": {"norm": "running"},
    }
    data, network = {"name": "glyphs", "train": 40, "val": 8, "test": 8}, {"name": "conv4", "filters": 4}
    return metaforge.train(
        "protonet", data, backbone=network, optimizer="sgd", steps=4, tasks=tasks, settings=settings, out=out, **more
    )


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    seen: list[Task] = []

    class Recording:
        @hookimpl
        def metaforge_before_step(self, batches: Sequence[Task]) -> None:
            assert len({len(tasks.support.x) for tasks in batches}) == 1
            seen.append(tree_map(lambda *x: torch.cat(x), *batches))

    large = stepped(tmp_path / "large", tasks=6, accumulate=1, hooks=[Recording()])
    small = stepped(tmp_path / "small", tasks=2, accumulate=3, hooks=[Recording()])
    assert any(name.startswith("state.") for name in large.values)
    assert large.values.keys() == small.values.keys()
    for name, value in large.values.items():
        torch.testing.assert_close(small.values[name], value, rtol=1e-9, atol=1e-11)
    # Hooks and metrics see all tasks of an outer step, and the episodes are the same.
    for ours, theirs in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(ours.support.x, theirs.support.x)
        assert len(ours.support.x) == 6
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("large", "small")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert {key: one[key] for key in ("loss", "score", "score_ci")} == pytest.approx(
            {key: other[key] for key in ("loss", "score", "score_ci")}
        )
        for row in (one, other):
            assert row["tasks_per_second"] == pytest.approx(6 * row["step"] / row["elapsed"])


def test_a_term_over_all_losses_is_that_of_each_batch(tmp_path: Path) -> None:
    registry = scan().with_plugin("regularizer", "spread", Spread)
    options: dict[str, Any] = {"regularizers": ["spread"], "registry": registry}
    resolved = stepped(tmp_path / "run", tasks=2, accumulate=2, **options).resolved
    with processes.world(torch.device("cpu")) as world:
        worker = Worker(resolved, world)
        values, batches = worker.initial(), worker.sample(1)
        both = worker.gradients(values, batches, 1)
        parts = [worker._batch_gradients(values, batch) for batch in batches]
        assert len(parts) == 2
    for name, grad in both.grads.items():
        torch.testing.assert_close(grad, (parts[0].grads[name] + parts[1].grads[name]) / 2)
    assert worker.episodes(3) == range(8, 12)


class Counting(Untrained):
    """Has nothing but a state entry, which counts the tasks."""

    def init(self, key: Key) -> Params:
        return {"state.tasks": torch.zeros(())}


@pytest.mark.parametrize(
    ("cls", "steps", "plan"),
    [(Untrained, 0, "fold"), (Untrained, 3, "loop"), (Untrained, 3, "vmap"), (Counting, 3, "fold")],
)
def test_a_learner_without_parameters_is_trained_and_evaluated(
    tmp_path: Path, cls: type[Learner], steps: int, plan: str
) -> None:
    registry = scan().with_plugin("learner", "raw", cls)
    settings = {"engine": {"plan": plan}, "train": {"tasks": 2}}
    data = {"name": "glyphs", "train": 40, "val": 8, "test": 8}
    run = metaforge.train("raw", data, steps=steps, settings=settings, out=tmp_path / "run", registry=registry)
    assert run.summary["steps"] == steps if steps else run.summary.get("steps", 0) == 0
    assert {name: float(value) for name, value in run.values.items()} == (
        {"state.tasks": 3.0} if cls is Counting else {}
    )
    found = metaforge.load(tmp_path / "run", registry=registry).evaluate(tasks=20)["results"][0]["scores"][-1]
    assert found["mean"] > 0.3
    config = configuration(tmp_path / "run", [Layer("keyword", {"train": {"steps": steps + 2}})], registry)
    assert run_training(config, folder=tmp_path / "run", resuming=True).summary["steps"] == steps + 2
