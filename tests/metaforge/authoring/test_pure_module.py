"""A user's own network computes what plain PyTorch computes: each case is compared with the untouched module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks.zoo import Aliased, ChannelNorm, NormAct, Twice
from metaforge.authoring import Model, Pass, make_key
from metaforge.authoring.protocols import NormPolicy
from metaforge.authoring.pure_module import _native_recurrence
from metaforge.errors import ConfigError
from plain_networks import TRAINING, assert_equal_to_plain, inputs, made

QUERY = Pass(make_key(1), 0, "query")


class ScaledGroupNorm(nn.GroupNorm):
    """Group norm that is scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Halving(nn.Dropout):
    """A subclass of dropout that draws no noise."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize("layer", [NormAct(4), ChannelNorm(4), ScaledGroupNorm(2, 4), Halving(0.5)])
def test_subclasses_of_replaced_layers_compute_what_their_owner_wrote(layer: nn.Module) -> None:
    network = made(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(64, 2)))
    model = assert_equal_to_plain(network, inputs(5, 1, 6, 6))
    # They are norm layers all the same, whose parameters an inner loop leaves as they are by default.
    assert not any(name.startswith("model.1.") for name in model.choose("weights"))


@pytest.mark.parametrize("norm", ["support", "running", "per-step"])
def test_a_subclass_of_batch_norm_is_refused_where_it_cannot_have_the_statistics(norm: NormPolicy) -> None:
    with pytest.raises(ConfigError, match="NormAct computes its own forward pass") as caught:
        Model(lambda: NormAct(4), norm=norm)
    assert "transductive" in caught.value.remedy


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    layer.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return layer


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Dropout(0.0), nn.ReLU()],
    ids=lambda layer: type(layer).__name__,
)
def test_hooks_of_layers_are_kept(layer: nn.Module) -> None:
    assert_equal_to_plain(made(lambda: nn.Sequential(nn.Linear(3, 4), hooked(layer), nn.Linear(4, 2))), inputs(5, 3))


def test_hooks_of_image_layers_are_kept() -> None:
    layers = [hooked(nn.Conv2d(1, 2, 3)), hooked(nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(8, 2)]
    assert_equal_to_plain(made(lambda: nn.Sequential(*layers)), inputs(5, 1, 6, 6))


def test_parametrizations_of_replaced_layers_are_kept() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    def build() -> nn.Module:
        layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 2)]
        for layer in layers:
            if hasattr(layer, "weight"):
                nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
        return nn.Sequential(*layers)

    assert_equal_to_plain(made(build), inputs(5, 1, 6, 6))
    assert_equal_to_plain(made(lambda: parametrizations.weight_norm(nn.Linear(3, 2))), inputs(5, 3))


def test_parameters_without_gradients_are_state() -> None:
    first = nn.Linear(3, 4)
    network = made(lambda: nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2)))
    first.weight.requires_grad_(False)
    model = assert_equal_to_plain(network, inputs(5, 3))
    values = model.init(make_key(0))
    assert torch.equal(values["state.model.0.weight"], first.weight)
    assert "model.0.weight" not in values
    assert model.choose("all") == ("model.0.bias", "model.2.weight", "model.2.bias")


def trained_norm() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(4).double()
    for seed in range(3):
        norm(2 + 3 * inputs(9, 4, seed=seed))
    return norm


@pytest.mark.parametrize("policy", ["transductive", "support", "running", "per-step"])
def test_a_layer_in_evaluation_mode_uses_its_running_statistics(policy: str) -> None:
    norm = trained_norm().eval()
    network = made(lambda: nn.Sequential(nn.Linear(3, 4), norm, nn.Dropout(0.5).eval(), nn.Linear(4, 2)))
    model = assert_equal_to_plain(network, inputs(5, 3), norm=policy, steps=2)
    assert (model.norm, model.transductive) == ("none", False)
    values = model.init(make_key(0))
    assert torch.equal(values["state.model.1.mean"], norm.running_mean)
    x = inputs(5, 3)
    torch.testing.assert_close(model(values, x, QUERY), copy.deepcopy(network)(x))
    assert model.observe(values, x, TRAINING)[1] == {}


def test_the_tie_of_an_aliased_layer_holds() -> None:
    assert_equal_to_plain(made(Aliased), inputs(5, 6))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="scripted module") as caught:
        Model(lambda: nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.BatchNorm1d(4))))
    assert caught.value.where == "backbone, layer '1'"


class Modes(nn.Module):
    """A network that computes something else in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out.sin() if self.training else out.cos()


def test_a_network_is_in_training_mode_in_training_and_in_evaluation_mode_in_evaluation() -> None:
    network, x = made(Modes), inputs(5, 3)
    model = assert_equal_to_plain(network, x)
    values = model.init(make_key(0))
    torch.testing.assert_close(model(values, x), copy.deepcopy(network).eval()(x))
    torch.testing.assert_close(model(values, x, TRAINING), network(x))


class Functional(nn.Module):
    """Calls batch norm as a function, in the mode of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(self.linear(x), None, None, training=self.training)


def test_batch_norm_as_a_function_is_in_training_mode() -> None:
    assert_equal_to_plain(made(Functional), inputs(5, 3))


class Uniform(nn.Module):
    """Adds noise of a function that no key governs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.empty(x.shape).uniform_() if self.training else x


def test_other_noise_is_refused_by_its_layer() -> None:
    model = Model(lambda: nn.Sequential(nn.Linear(3, 2), Uniform()))
    before = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=r"draws noise that no key governs, in the layer '1' \(Uniform\)"):
        model(model.init(make_key(0)), inputs(5, 3).float(), TRAINING)
    torch.random.set_rng_state(before)
    with pytest.raises(ConfigError, match="dropout draws noise"):
        Model(lambda: nn.LSTM(3, 2, num_layers=2, dropout=0.5))


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        out: Tensor = self.linear(x) * (1 + self.calls)
        return out


@pytest.mark.parametrize("build", [Counting, lambda: parametrizations.spectral_norm(nn.Linear(3, 2))])
def test_a_network_that_changes_its_buffers_is_refused(build: Callable[[], nn.Module]) -> None:
    model = Model(build)
    values, x = model.init(make_key(0)), inputs(5, 3).float()
    evaluated = model(values, x)
    with pytest.raises(ConfigError, match="changes its buffer"):
        model(values, x, TRAINING)
    still = Model(lambda: build().eval())
    assert torch.equal(still(still.init(make_key(0)), x, TRAINING), evaluated)


def test_a_batch_norm_that_is_used_twice_moves_its_averages_twice() -> None:
    network = made(Twice)
    model = assert_equal_to_plain(network, inputs(5, 6), norm="running")
    values, x = model.init(make_key(0)), 2 + inputs(5, 6)
    change = model.observe(values, x, TRAINING)[1]
    native = copy.deepcopy(network)
    native(x)
    assert isinstance(native.norm, nn.BatchNorm1d)
    torch.testing.assert_close(
        values["state.model.norm.mean"] + change["state.model.norm.mean"], native.norm.running_mean
    )
    torch.testing.assert_close(values["state.model.norm.var"] + change["state.model.norm.var"], native.norm.running_var)


def test_a_batch_norm_that_is_used_twice_has_support_statistics_of_each_use() -> None:
    network, x = made(Twice), 2 + inputs(5, 6)
    model = Model(lambda: network, norm="support")
    values = model.init(make_key(0))
    statistics = model.statistics(values, x, TRAINING)
    # On the support set itself, its own statistics are those of a plain training pass.
    torch.testing.assert_close(model(values | statistics, x, QUERY), copy.deepcopy(network)(x))


def test_an_error_in_a_network_names_the_layer() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    model = Model(lambda: nn.Sequential(nn.Linear(3, 2), Branching()))
    values = model.init(make_key(0))
    with pytest.raises(RuntimeError, match="item") as caught:
        torch.func.vmap(lambda x: model(values, x))(inputs(2, 5, 3).float())
    assert caught.value.__notes__ == ["in the layer '1' (Branching) of the network"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_networks_that_cannot_be_copied_or_have_no_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be copied") as caught:
        Model(lambda: nn.utils.weight_norm(nn.Linear(3, 2)))
    assert "parametrizations.weight_norm" in caught.value.remedy
    with pytest.raises(ConfigError, match="has no shapes yet"):
        Model(lambda: nn.LazyLinear(2))
    with pytest.raises(ConfigError, match="with running statistics"):
        Model(lambda: nn.InstanceNorm1d(3, track_running_stats=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layers_have_gradients(kind: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = kind(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.recurrent(x)[0][:, -1]
            return out

    network, x = Recurrent().to(dtype), inputs(5, 6, 3).to(dtype)
    model = Model(lambda: network)
    values = model.init(make_key(0))

    def loss(values: dict[str, Tensor]) -> Tensor:
        return model(values, x, TRAINING).square().mean()

    def norm(values: dict[str, Tensor]) -> Tensor:
        grads = torch.func.grad(loss)(values)
        return torch.stack([grad.square().sum() for grad in grads.values()]).sum()

    second = torch.func.grad(norm)(values)
    with _native_recurrence():
        native = copy.deepcopy(network)
        params = list(native.parameters())
        grads = torch.autograd.grad(native(x).square().mean(), params, create_graph=True)
        expected = torch.autograd.grad(torch.stack([grad.square().sum() for grad in grads]).sum(), params)
    for (name, _), grad in zip(native.named_parameters(), expected, strict=True):
        torch.testing.assert_close(second[f"model.{name}"], grad)
