"""Exchange of layers: which layers of a network are replaced, and which are left to torch."""

from __future__ import annotations

from torch import Tensor, nn

from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.dropout import Dropout
from metaforge.authoring.layers.exchange import exchange_layers, pools, replacement
from metaforge.authoring.layers.images import Conv2d, MaxPool2d, ReLU
from metaforge.authoring.layers.norms import BatchNorm, LayerNorm


def test_exchange_replaces_every_layer_of_a_copy_and_keeps_names() -> None:
    native = nn.ModuleDict(
        {"a": nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), "b": nn.LayerNorm(2), "c": nn.Dropout(0.5)}
    )
    ours = exchange_layers(native, ForwardContext("running"))
    assert list(dict(ours.named_parameters())) == list(dict(native.named_parameters()))
    kinds = {type(m) for m in ours.modules()}
    assert {BatchNorm, LayerNorm, Dropout} <= kinds
    assert not kinds & {nn.BatchNorm2d, nn.LayerNorm, nn.Dropout}
    assert native.training
    assert isinstance(native["b"], nn.LayerNorm)


class Shared(nn.Module):
    """One norm layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 2)  # type: ignore[no-any-return]


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    ours = exchange_layers(Shared(), ForwardContext("transductive"))
    assert ours.first is ours.second
    assert isinstance(ours.second, BatchNorm)


def test_layers_that_differ_from_these_are_left_to_torch() -> None:
    class Own(nn.Conv2d):
        """A user's own layer."""

    left = [
        Own(1, 1, 3),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.Conv2d(1, 1, 3, padding_mode="reflect", padding=1),
        nn.MaxPool2d(3, 2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d((2, 2)),
        nn.Conv1d(1, 1, 3),
        nn.LeakyReLU(),
    ]
    assert [replacement(layer) for layer in left] == [None] * len(left)


def test_image_layers_share_their_parameters_and_know_whether_the_network_pools() -> None:
    for network, pooled in (
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), False),
    ):
        assert pools(network) is pooled
        ours = exchange_layers(network, ForwardContext("transductive"))
        assert [type(layer) for layer in ours] == [Conv2d, ReLU, MaxPool2d][: len(network)]
        assert ours[0].pooled is pooled
    conv = nn.Conv2d(1, 2, 3)
    layer = replacement(conv)
    assert layer is not None
    assert layer.weight is conv.weight


def test_replacements_have_the_settings_of_the_layers_that_they_replace() -> None:
    layers = [nn.Dropout(0.3), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4)]
    ours = exchange_layers(nn.ModuleList(layers), ForwardContext("transductive"))
    for native, layer in zip(layers, ours.children(), strict=True):
        settings = {name: value for name, value in vars(native).items() if not name.startswith("_")}
        assert {name: getattr(layer, name) for name in settings} == settings
