"""The contract of a kind: missing members, wrong parameters and wrong attributes are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from metaforge import hookimpl
from metaforge.authoring.protocols import (
    Adapter,
    Backbone,
    Component,
    Dataset,
    Learner,
    Options,
    PretrainedOptions,
    Regularizer,
)
from metaforge.errors import PluginError
from metaforge.registry.contract import contract_errors
from metaforge.registry.registry import Registry


class Doubling(Adapter):
    """Doubles the gradient."""

    class Config(Options):
        pass

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


class Empty(Options):
    pass


def class_with(base: type[Any], **members: Any) -> type[Any]:
    def __init__(self: Any, config: Any) -> None: ...

    return type("Broken", (base,), {"Config": Empty, "__init__": __init__, **members})


def error_of(kind: str, cls: type[Any]) -> str:
    with pytest.raises(PluginError) as caught:
        Registry([]).with_plugin(kind, "x", cls).load(kind, "x")
    return caught.value.what


def test_missing_members_are_named() -> None:
    assert "'update' is missing" in error_of("adapter", class_with(Adapter))
    assert "'build' is missing" in error_of("backbone", class_with(Backbone))
    assert "'carry' is missing" in error_of("adapter", class_with(object, update=Doubling.update))
    assert "'Config' is not a pydantic model" in error_of("adapter", class_with(Doubling, Config=int))


def test_parameters_of_class_methods_are_checked_too() -> None:
    plain = class_with(Dataset, kind="classification", variant=lambda self, options: type(self))
    assert "variant(self, options) should begin (options)" in contract_errors("dataset", plain)
    renamed = class_with(Dataset, kind="classification", variant=classmethod(lambda cls, chosen: cls))
    assert "variant(chosen) should begin (options)" in contract_errors("dataset", renamed)


def test_parameters_of_wrong_names_are_named() -> None:
    def update(self: Any, meta: Any, gradients: Any, state: Any, params: Any, step: Any) -> None: ...

    assert "should begin (self, meta, grads, state, params, step)" in error_of(
        "adapter", class_with(Doubling, update=update)
    )

    def more(self: Any, meta: Any, grads: Any, state: Any, params: Any, step: Any, mood: Any) -> None: ...

    assert "update needs 'mood', which MetaForge does not pass" in error_of(
        "adapter", class_with(Doubling, update=more)
    )

    def no_steps(self: Any, values: Any, support: Any, *, key: Any = None) -> None: ...

    def predict(self: Any, values: Any, fast: Any, x: Any, **more: Any) -> None: ...

    def loss(self: Any, *args: Any) -> None: ...

    def init(self: Any, key: Any) -> None: ...

    cls = class_with(Learner, adapt=no_steps, predict=predict, loss=loss, init=init)
    message = error_of("learner", cls)
    assert "adapt lacks the keyword 'steps'" in message
    assert "__init__(self, config) should begin (self, config, parts)" in message
    assert "predict" not in message
    assert "loss" not in message


def test_attributes_of_a_wrong_type_are_named() -> None:
    message = error_of(
        "learner", class_with(Learner, tags={"kinds": "all"}, reference=3, defaults={"classification": "fast"})
    )
    for part in ("'tags' is not of type", "'reference' is not a string", "'defaults' is not a mapping"):
        assert part in message
    assert "'terms' is not a frozenset of names" in error_of(
        "regularizer", class_with(Regularizer, terms="loss_before")
    )
    assert "'kind' is not one of classification, regression" in error_of("dataset", class_with(Dataset, kind="poetry"))


def test_a_regularizer_needs_only_its_options() -> None:
    cls = class_with(Regularizer)
    assert Registry([]).with_plugin("regularizer", "x", cls).load("regularizer", "x") is cls


def test_an_option_called_name_is_refused_for_a_kind_chosen_by_name() -> None:
    class Named(Options):
        name: str = "x"

    def build(self: Any, spec: Any) -> None: ...

    assert "has an option 'name'" in error_of("backbone", class_with(Backbone, build=build, Config=Named))


def test_a_backbone_that_offers_pretrained_weights_has_them() -> None:
    def build(self: Any, spec: Any) -> None: ...

    message = error_of("backbone", class_with(Backbone, build=build, Config=PretrainedOptions))
    assert "'pretrained' is missing, which its 'Config' offers" in message


def test_the_option_after_a_colon_must_exist() -> None:
    class Misspelt(Options):
        after_colon: ClassVar[str] = "dpeth"
        depth: int = 1

    def build(self: Any, spec: Any) -> None: ...

    assert "'dpeth', which is none of its options" in error_of(
        "backbone", class_with(Backbone, build=build, Config=Misspelt)
    )


def test_a_hook_plugin_without_a_hook_is_refused() -> None:
    members = {"reference": "", "defaults": {}}
    assert "none of the hooks" in error_of("hook", class_with(object, **members))


def test_a_plugin_of_a_kind_whose_hooks_are_never_called_is_refused() -> None:
    @hookimpl
    def metaforge_run_start(self: Any, run: Any) -> None: ...

    hooked = class_with(Doubling, metaforge_run_start=metaforge_run_start)
    assert "the hooks of a learner, dataset, regularizer or hook plugin only" in error_of("adapter", hooked)
    assert contract_errors("regularizer", class_with(Regularizer, metaforge_run_start=metaforge_run_start)) == []


def test_an_option_that_is_not_known_must_be_refused() -> None:
    class Lenient(Options):
        model_config = {"extra": "ignore"}

    assert "'Config' accepts unknown options" in error_of("adapter", class_with(Doubling, Config=Lenient))


def test_a_method_that_is_not_callable_is_named() -> None:
    assert "'update' is not a method" in error_of("adapter", class_with(Doubling, update=3))


def test_a_valid_class_has_no_errors() -> None:
    assert contract_errors("adapter", Doubling) == []


class Counter(Component):
    """A hook plugin with a state."""

    class Config(Options): ...

    reference = ""
    defaults: Mapping[Any, Any] = {}

    def __init__(self, config: Any) -> None: ...

    @hookimpl
    def metaforge_after_step(self) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


def test_a_hook_plugin_has_state_and_restore_or_neither() -> None:
    class NoRestore(Counter):
        restore = None  # type: ignore[assignment]

    class NoState(Counter):
        state = None  # type: ignore[assignment]

    class WrongRestore(Counter):
        def restore(self) -> None: ...  # type: ignore[override]

    assert contract_errors("hook", Counter) == []
    assert contract_errors("hook", NoRestore) == ["it has 'state' without 'restore'"]
    assert contract_errors("hook", NoState) == ["it has 'restore' without 'state'"]
    assert contract_errors("hook", WrongRestore) == ["restore(self) should begin (self, state)"]


def test_errors_of_hooks_are_errors_of_the_contract() -> None:
    class Misspelt(Counter):
        @hookimpl
        def metaforge_after_stpe(self) -> None: ...

    class Watching(Doubling):
        @hookimpl
        def metaforge_after_stpe(self) -> None: ...

    assert "no hook 'metaforge_after_stpe'" in error_of("hook", Misspelt)
    assert "no hook 'metaforge_after_stpe'" in error_of("adapter", Watching)


def test_the_article_fits_the_kind() -> None:
    assert "does not keep the contract of an adapter: " in error_of("adapter", class_with(Adapter, update=None))
    assert "does not keep the contract of a learner: " in error_of("learner", class_with(Learner, loss=None))
