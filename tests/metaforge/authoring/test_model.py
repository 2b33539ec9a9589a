"""Model: any module as a pure function, with its norm layers replaced and its statistics in the values."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.network import seeded, with_head
from metaforge.authoring.protocols import (
    Examples,
    Key,
    NormPolicy,
    Options,
    Params,
    Parts,
    Pass,
    Regularizer,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.errors import ConfigError
from toys import POLICIES, double

KEY = make_key(0)
TRAINING = Pass(KEY, 0, "support")
MEAN, VAR = "state.model.1.mean", "state.model.1.var"


def made(seed: int = 0, *layers: nn.Module) -> nn.Module:
    """Return a network with batch norm (or of the layers given), its weights drawn from a seed."""
    with seeded(make_key(seed)):
        return nn.Sequential(*(layers or (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))))


def inputs(n: int = 6, seed: int = 0) -> Tensor:
    """Return inputs `[n, 3]`."""
    return 1 + 2 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pure(module: nn.Module, **options: object) -> tuple[Model, Params]:
    """Return the model of a module, and its values in float64."""
    model = Model(lambda: module, **options)  # type: ignore[arg-type]
    return model, double(model.init(make_key(0)))


def test_native_norms_are_replaced_and_equal_in_value() -> None:
    norms = [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2)]
    module = made(0, nn.Linear(3, 4), *norms, nn.Flatten(), nn.Linear(4, 2))
    model, values = pure(module)
    assert not any(
        type(m) in {type(norms[0]), type(norms[1]), type(norms[2]), type(norms[4])} for m in model.module.modules()
    )
    torch.testing.assert_close(model(values, inputs(), TRAINING), copy.deepcopy(module).double().train()(inputs()))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_users_module_is_left_as_it_was(policy: str) -> None:
    body = made(0, nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = copy.deepcopy(body.state_dict())
    model, values = pure(with_head(lambda: body, 2, (3,))(), norm=policy)
    model.observe(values, inputs(), TRAINING)
    model.statistics(values, inputs(), TRAINING)
    model(values | model.statistics(values, inputs(), TRAINING), inputs())
    assert [type(m) for m in body] == [nn.Linear, nn.BatchNorm1d, nn.Dropout]
    assert all(m.training for m in body.modules())
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in body.parameters())


def test_weights_of_a_pretrained_module_are_kept_and_fresh_ones_follow_the_key() -> None:
    module = made(5)
    values = Model(lambda: module).init(make_key(1))
    for name, parameter in module.named_parameters():
        assert torch.equal(values[f"model.{name}"], parameter)
        assert not values[f"model.{name}"].requires_grad
        assert values[f"model.{name}"].data_ptr() != parameter.data_ptr()
    drawn = Model(lambda: nn.Linear(3, 2))
    assert torch.equal(drawn.init(make_key(1))["model.weight"], drawn.init(make_key(1))["model.weight"])
    assert not torch.equal(drawn.init(make_key(1))["model.weight"], drawn.init(make_key(2))["model.weight"])


def test_no_global_generator_moves() -> None:
    before = torch.random.get_rng_state()
    model = Model(lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)))
    model(model.init(make_key(1)), inputs().float(), TRAINING)
    assert torch.equal(before, torch.random.get_rng_state())


def test_changes_of_running_statistics_equal_torch() -> None:
    module = made(0)
    model, values = pure(module, norm="running")
    native = copy.deepcopy(module).double().train()
    for seed in range(3):
        output, change = model.observe(values, inputs(seed=seed), TRAINING)
        torch.testing.assert_close(output, native(inputs(seed=seed)))
        assert set(change) == {MEAN, VAR}
        values = values | {name: values[name] + change[name] for name in change}
        torch.testing.assert_close(values[MEAN], native[1].running_mean)  # type: ignore[index]
        torch.testing.assert_close(values[VAR], native[1].running_var)  # type: ignore[index]
    output, change = model.observe(values, inputs(seed=9))
    torch.testing.assert_close(output, native.eval()(inputs(seed=9)))
    assert change == {}


def test_policies_say_what_a_query_depends_on() -> None:
    alone = {}
    for policy in POLICIES:
        model, values = pure(made(0), norm=policy, steps=1)
        values |= model.statistics(values, inputs(seed=1), Pass(role="support"))
        whole, one = model(values, inputs()), model(values, inputs()[:1])
        alone[policy] = torch.allclose(whole[:1], one, rtol=1e-12)
        assert model.norm == policy
        assert model.transductive is (not alone[policy])
    assert alone == {"transductive": False, "support": True, "running": True, "per-step": False}


def test_a_network_without_batch_norm_has_no_policy() -> None:
    model, values = pure(made(0, nn.Linear(3, 4), nn.LayerNorm(4)), norm="transductive")
    assert model.norm == "none"
    assert not model.transductive
    assert model.statistics(values, inputs(), TRAINING) == {}
    assert model.observe(values, inputs(), TRAINING)[1] == {}
    assert model.norm_names == {"model.1.weight", "model.1.bias"}


def test_support_statistics_are_those_of_the_support_set() -> None:
    model, values = pure(made(0), norm="support")
    assert not any(name.startswith("state.") for name in values)
    taken = model.statistics(values, inputs(), Pass(role="support"))
    hidden = inputs() @ values["model.0.weight"].T + values["model.0.bias"]
    torch.testing.assert_close(taken[MEAN], hidden.mean(0))
    torch.testing.assert_close(taken[VAR], hidden.var(0, unbiased=False))
    same = model(values | taken, inputs(), Pass(role="query"))
    torch.testing.assert_close(same, model(values, inputs(), Pass(role="support")))


def test_per_step_statistics_have_a_slot_for_every_step() -> None:
    model, values = pure(made(0), norm="per-step", steps=2)
    assert values[MEAN].shape == (3, 4)
    for step, slot in ((0, 0), (1, 1), (2, 2), (7, 2)):
        change = model.observe(values, inputs(), TRAINING._replace(step=step))[1]
        changed = change[MEAN].abs().sum(1) > 0
        assert changed.nonzero().flatten().tolist() == [slot]
    # They normalise nothing, in training and in evaluation.
    moved = values | {MEAN: values[MEAN] + 1.0}
    for at in (Pass(step=1), TRAINING._replace(step=1)):
        assert torch.equal(model(values, inputs(), at), model(moved, inputs(), at))
    assert torch.equal(model(values, inputs(), Pass(step=1)), model(values, inputs(), TRAINING._replace(step=1)))
    assert model.observe(values, inputs(), Pass(step=1))[1] == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_vectorised_equals_loop(policy: str) -> None:
    model, values = pure(made(0), norm=policy, steps=1)
    x = torch.stack([inputs(seed=seed) for seed in range(4)])

    def both(one: Tensor) -> tuple[Tensor, Params]:
        taken = values | model.statistics(values, one, TRAINING)
        output, change = model.observe(taken, one, Pass(make_key(0), 0, "query"))
        return output, dict(change)

    outputs, changes = vmap(both)(x)
    for i in range(4):
        output, change = both(x[i])
        torch.testing.assert_close(outputs[i], output, rtol=1e-12, atol=1e-12)
        for name in change:
            torch.testing.assert_close(changes[name][i], change[name], rtol=1e-12, atol=1e-12)


def test_dropout_is_drawn_by_the_passs_key() -> None:
    model, values = pure(made(0, nn.Linear(3, 40), nn.Dropout(0.5)))
    on, off = model(values, inputs(), TRAINING), model(values, inputs())
    assert torch.equal(on, model(values, inputs(), TRAINING))
    assert torch.equal(on[on != 0], 2 * off[on != 0])
    assert 0.3 < float((on == 0).double().mean()) < 0.7
    assert not torch.equal(on, model(values, inputs(), TRAINING._replace(key=make_key(1))))


class Buffered(nn.Module):
    """A linear layer that is fixed in a buffer, and one that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fixed", torch.ones(4, 3))
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(nn.functional.linear(x, self.fixed)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_buffers_follow_the_inputs(dtype: torch.dtype) -> None:
    model = Model(Buffered, norm="support")
    values = {name: value.to(dtype) for name, value in model.init(make_key(0)).items()}
    assert not any("fixed" in name for name in values)
    x = inputs().to(dtype)
    assert model(values | model.statistics(values, x, TRAINING), x).dtype == dtype


class Doubling(Regularizer):
    """Multiplies the outputs of tanh layers by a meta-learned factor and notes what it saw."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.seen: list[tuple[str, tuple[int, ...], Pass]] = []

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        return {f"factor.{name}": torch.full((), 2.0) for name, module in modules.items() if self.taps(name, module)}

    def taps(self, name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Tanh)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        self.seen.append((name, tuple(inputs.shape), at))
        return output * meta[f"factor.{name}"]

    def draws(self, key: Key | None) -> int:
        return 3


def test_regularizers_tap_the_modules_that_they_ask_for() -> None:
    first, second = Doubling(Options()), Doubling(Options())
    model, values = pure(made(0), regularizers={"one": first, "two": second})
    assert {name for name in values if name.startswith("reg")} == {
        "regularizers.one.factor.2",
        "regularizers.two.factor.2",
    }
    plain, _ = pure(made(0))
    doubled = values | {"model.3.weight": 4 * values["model.3.weight"]}
    torch.testing.assert_close(model(values, inputs(), TRAINING), plain(doubled, inputs(), TRAINING))
    assert first.seen == [("2", (6, 4), TRAINING)]
    assert model.draws(None) == 3
    assert plain.draws(None) == 1


def test_a_trained_network_keeps_its_running_statistics() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[1].running_mean += 2.0  # type: ignore[operator, union-attr]
    module[1].running_var *= 3.0  # type: ignore[operator, union-attr]
    model = Model(lambda: module, norm="running")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(model.init(KEY), x), module.eval()(x))


def test_channel_dropout_follows_the_key_and_noise_without_one_is_refused() -> None:
    model = Model(lambda: nn.Sequential(nn.Conv2d(1, 64, 1), nn.Dropout2d(0.5)))
    values, x = model.init(KEY), torch.ones(3, 1, 4, 4)
    kept = model(values, x, Pass(KEY)).flatten(2).abs().sum(-1) > 0
    whole = (model(values, x, Pass(KEY)) != 0).flatten(2).all(-1)
    assert torch.equal(kept, whole)
    assert 0.3 < float(kept.float().mean()) < 0.7
    assert bool((model(values, x) != 0).all())
    with pytest.raises(ConfigError, match="no key governs"):
        Model(lambda: nn.AlphaDropout(0.1))
    with pytest.raises(ConfigError, match="momentum=None"):
        Model(lambda: nn.BatchNorm1d(3, momentum=None))


SPEC = TaskSpec("classification", (3,), 2, TaskShape(2, 3, 3))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_number_of_features_is_known_without_another_build(policy: NormPolicy) -> None:
    builds: list[int] = []

    def build() -> nn.Module:
        builds.append(1)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Unflatten(1, (4, 2)))

    model = Model.of(Parts(SPEC, build, regularizers={"one": Doubling(Options())}), norm=policy, steps=1)
    before = torch.random.get_rng_state()
    assert model.features == 8
    assert len(builds) == 1
    assert torch.equal(before, torch.random.get_rng_state())
    assert Model.of(Parts(SPEC, build), norm=policy, outputs=5).features == 5
    with pytest.raises(AssertionError, match="x_shape"):
        _ = Model(build).features


@pytest.mark.parametrize("policy", [*POLICIES, "none"])
def test_a_task_is_embedded_as_one_batch_unless_statistics_are_of_one_set(policy: str) -> None:
    norm = nn.LayerNorm(4) if policy == "none" else nn.BatchNorm1d(4)
    model, values = pure(made(0, nn.Linear(3, 4), norm), norm="running" if policy == "none" else policy, steps=1)
    x, y = inputs(7), torch.zeros(7, dtype=torch.int64)
    task = Task(Examples(x[:3], y[:3]), Examples(x[3:], y[3:]))
    support, query, state = model.observe_task(values, task, KEY)
    if policy in ("transductive", "support", "per-step"):
        at = Pass(KEY, 0, "support")
        expected = model(values, x[:3], at)
        fixed = values | model.statistics(values, x[:3], at)
        after, change = model.observe(fixed, x[3:], Pass(KEY, 0, "query"))
        assert bool(change) is (policy == "per-step")
    else:
        output, change = model.observe(values, x, Pass(KEY, 0, "query"))
        expected, after = output[:3], output[3:]
    assert torch.equal(support, expected)
    assert torch.equal(query, after)
    assert state.keys() == change.keys()
    assert all(torch.equal(state[name], change[name]) for name in change)


def test_embedding_a_task_in_evaluation_changes_no_state() -> None:
    model, values = pure(made(0, nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (2, 2))), norm="running")
    x, y = inputs(7), torch.zeros(7, dtype=torch.int64)
    support, query, state = model.observe_task(values, Task(Examples(x[:3], y[:3]), Examples(x[3:], y[3:])), None)
    assert (support.shape, query.shape, state) == ((3, 4), (4, 4), {})
    torch.testing.assert_close(torch.cat([support, query]), model(values, x).flatten(1))


class Attached(Doubling):
    """Stores the names of the modules of the network."""

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        self.names = list(modules)


def test_a_regularizer_is_attached_when_the_model_is_built() -> None:
    regularizer = Attached(Options())
    model = Model(lambda: made(0), regularizers={"one": regularizer})
    assert regularizer.names == [name for name, _ in model.module.named_modules()]


@pytest.mark.parametrize("policy", ["running", "per-step"])
def test_a_layer_with_frozen_statistics_computes_in_training_what_it_computes_in_evaluation(policy: NormPolicy) -> None:
    model = Model(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), norm=policy, steps=1, frozen=["model.1.*"])
    values = {name: value.double() for name, value in model.init(make_key(0)).items()}
    values |= {name: value + 0.5 for name, value in values.items() if name.startswith("state.")}
    trained, change = model.observe(values, inputs(), Pass(make_key(1), 0, "support"))
    assert change == {}
    torch.testing.assert_close(trained, model(values, inputs()))
    free = Model(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), norm=policy, steps=1)
    assert free.observe(values, inputs(), Pass(make_key(1), 0, "support"))[1]


def test_the_initial_statistics_are_those_of_the_network_that_init_builds() -> None:
    built: list[float] = []

    def build() -> nn.Module:
        norm = nn.BatchNorm1d(3)
        built.append(len(built) + 1.0)
        norm.running_mean.fill_(built[-1])  # type: ignore[union-attr]
        return norm

    model = Model(build, norm="running")
    assert float(model.init(make_key(0))["state.model..mean"][0]) == built[-1] == 2.0
