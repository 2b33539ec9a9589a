"""Layered configuration: what wins, what is dropped, what is refused, and that the resolved file reproduces the run."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field
from torch import nn

from metaforge.authoring.protocols import Adapter, Backbone, Dataset, Learner, Options, Regularizer, Tags
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.sources import Layer, file_layer, flags_layer, parse_setting, parse_value
from metaforge.data.root import data_root
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry


class Inner(Options):
    scale: float | None = Field(default=1.0, gt=0, description="A nested option.")


class NearestConfig(Options):
    temperature: float = Field(default=1.0, gt=0, description="A temperature.")
    layers: list[int] = Field(default=[8, 8], description="Widths.")
    bias: bool = Field(default=True, description="Whether there is a bias.")
    floor: float | None = Field(default=None, description="An optional value.")
    inner: Inner = Field(default=Inner(), description="Nested.")


class Plain(Learner):
    """A learner that needs nothing."""

    Config = NearestConfig

    def __init__(self, config: Any, parts: Any) -> None: ...
    def init(self, key: Any) -> Any: ...
    def adapt(self, values: Any, support: Any, *, steps: Any = None, key: Any = None) -> Any: ...
    def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any: ...
    def loss(self, values: Any, task: Any, key: Any) -> Any: ...


class InnerLoop(Plain):
    """A learner that needs a backbone and an adapter."""

    class Config(Options):
        inner_steps: int = Field(default=5, ge=1, description="Inner steps.")

    tags = Tags(kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone", "adapter"}))
    defaults: ClassVar[Any] = {
        "classification": {
            "train": {"lr": 0.002, "clip": 10.0},
            "adapters": {"descent": {"lr": 0.4}},
            "learner": {"inner_steps": 3},
        },
        "regression": {"adapters": {"descent": {"lr": 0.01}}, "backbone": {"width": 40}},
    }


class Pictures(Dataset):
    """A classification data set."""

    class Config(Options):
        rotations: bool = Field(default=True, description="Rotated copies are classes.")

    kind: ClassVar[Any] = "classification"
    defaults: ClassVar[Any] = {"classification": {"train": {"lr": 0.005, "tasks": 4}, "backbone": {"name": "conv"}}}

    def __init__(self, config: Any, *, root: Path) -> None: ...
    def spec(self, split: Any, shape: Any) -> Any: ...
    def sample(self, split: Any, shape: Any, first: Any, count: Any, *, seed: Any) -> Any: ...
    def facts(self, split: Any) -> Any: ...


class Waves(Pictures):
    """A regression data set."""

    class Config(Options):
        noise: float = Field(default=0.0, ge=0, description="Noise.")

    kind: ClassVar[Any] = "regression"
    defaults: ClassVar[Any] = {"regression": {"task": {"ways": 1, "shots": 10}, "backbone": {"name": "dense"}}}


class Conv(Backbone):
    """A backbone."""

    class Config(Options):
        channels: int = Field(default=64, ge=1, description="Channels.")

    def __init__(self, config: Any) -> None: ...
    def build(self, spec: Any) -> nn.Module:
        return nn.Identity()


class Dense(Conv):
    """Another backbone."""

    class Config(Options):
        width: int = Field(default=20, ge=1, description="Units.")


class Descent(Adapter):
    """An adapter."""

    class Config(Options):
        lr: float = Field(default=0.1, gt=0, description="Rate.")

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


class Rates(Descent):
    """Another adapter."""


class Noise(Regularizer):
    """A regularizer."""

    class Config(Options):
        rate: float = Field(default=0.1, ge=0, lt=1, description="Rate.")

    def __init__(self, config: Any) -> None: ...


@pytest.fixture
def registry() -> Registry:
    made = Registry([], {})
    for kind, name, cls in [
        ("learner", "plain", Plain),
        ("learner", "inner-loop", InnerLoop),
        ("dataset", "pictures", Pictures),
        ("dataset", "waves", Waves),
        ("backbone", "conv", Conv),
        ("backbone", "dense", Dense),
        ("adapter", "descent", Descent),
        ("adapter", "rates", Rates),
        ("regularizer", "noise", Noise),
    ]:
        made = made.with_plugin(kind, name, cls)
    return made


def with_values(**values: Any) -> Layer:
    return Layer("test", values)


INNER_LOOP = with_values(learner="inner-loop", dataset="pictures")
PLAIN = with_values(learner="plain", dataset="pictures")


def config_of(choice: Any) -> dict[str, Any]:
    assert choice is not None
    found: dict[str, Any] = choice.config.model_dump()
    return found


def test_defaults_of_core_dataset_and_learner_are_laid_in_this_order(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP], registry)
    assert resolved.run.train.lr == 0.002
    assert resolved.run.train.tasks == 4
    assert resolved.run.task.ways == 5
    assert config_of(resolved.learner) == {"inner_steps": 3}
    assert [choice.name for choice in resolved.adapters] == ["descent"]
    assert config_of(resolved.adapters[0]) == {"lr": 0.4}
    assert resolved.backbone is not None
    assert resolved.backbone.name == "conv"
    assert resolved.origins["train.lr"] == "default of learner inner-loop"
    assert resolved.origins["train.tasks"] == "default of dataset pictures"
    assert resolved.origins["task.ways"] == "default"
    assert resolved.origins["learner.name"] == "test"


def test_the_kind_of_the_dataset_chooses_the_defaults(registry: Registry) -> None:
    resolved = resolve([with_values(learner="inner-loop", dataset="waves")], registry)
    assert config_of(resolved.adapters[0]) == {"lr": 0.01}
    assert config_of(resolved.backbone) == {"width": 40}
    assert resolved.run.task.ways == 1
    assert config_of(resolved.learner) == {"inner_steps": 5}


def test_a_higher_layer_wins_and_keeps_the_rest(registry: Registry) -> None:
    file = Layer("run.toml", {"train": {"lr": 0.1, "tasks": 7}, "learner": {"name": "inner-loop", "inner_steps": 9}})
    flags = flags_layer([("--set train.lr", "train.lr", 0.2), ("--dataset", "dataset.name", "pictures")])
    resolved = resolve([file, flags], registry)
    assert (resolved.run.train.lr, resolved.run.train.tasks) == (0.2, 7)
    assert config_of(resolved.learner) == {"inner_steps": 9}
    assert resolved.origins["train.lr"] == "--set train.lr"
    assert resolved.origins["train.tasks"] == "run.toml"


def test_another_name_drops_options_of_the_old_one_and_says_so(registry: Registry) -> None:
    file = Layer("run.toml", {"learner": {"name": "plain", "temperature": 2.0}, "dataset": {"name": "pictures"}})
    resolved = resolve([file, flags_layer([("--learner", "learner.name", "inner-loop")])], registry)
    assert config_of(resolved.learner) == {"inner_steps": 3}
    assert len(resolved.notes) == 1
    assert "temperature" in resolved.notes[0]
    assert "--learner" in resolved.notes[0]


def test_the_same_name_again_keeps_the_options(registry: Registry) -> None:
    file = Layer("run.toml", {"learner": {"name": "inner-loop", "inner_steps": 9}, "dataset": {"name": "pictures"}})
    resolved = resolve([file, flags_layer([("--learner", "learner.name", "inner-loop")])], registry)
    assert config_of(resolved.learner) == {"inner_steps": 9}
    assert resolved.notes == ()


def test_defaults_for_the_usual_backbone_do_not_trouble_another(registry: Registry) -> None:
    class Moody(InnerLoop):
        defaults: ClassVar[Any] = {"classification": {"adapters": ["descent"], "backbone": {"variant": "wide"}}}

    moody = registry.with_plugin("learner", "moody", Moody)
    resolved = resolve([with_values(learner="moody", dataset="pictures")], moody)
    assert config_of(resolved.backbone) == {"channels": 64}
    with pytest.raises(ConfigError, match=r"no option 'backbone\.variant'"):
        resolve([with_values(learner="moody", dataset="pictures", backbone={"variant": "wide"})], moody)


def test_another_backbone_drops_default_options_without_a_word(registry: Registry) -> None:
    layer = with_values(learner="inner-loop", dataset="waves", backbone={"name": "conv", "channels": 3})
    resolved = resolve([layer], registry)
    assert config_of(resolved.backbone) == {"channels": 3}
    assert resolved.notes == ()


def test_a_set_replaces_the_set_below_and_keeps_options_of_the_same_names(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(adapters={"rates": {"lr": 0.3}, "descent": {}})], registry)
    assert [(choice.name, config_of(choice)["lr"]) for choice in resolved.adapters] == [
        ("rates", 0.3),
        ("descent", 0.4),
    ]
    assert resolved.origins["adapters.descent.lr"] == "default of learner inner-loop"
    resolved = resolve([INNER_LOOP, with_values(adapters={"rates": {}})], registry)
    assert [choice.name for choice in resolved.adapters] == ["rates"]


def test_set_changes_options_of_plugins_in_the_chain_only(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, flags_layer([("--set", "adapters.descent.lr", 0.7)])], registry)
    assert config_of(resolved.adapters[0]) == {"lr": 0.7}
    with pytest.raises(ConfigError, match=r"adapters\.rates is not among the adapters"):
        resolve([INNER_LOOP, flags_layer([("--set", "adapters.rates.lr", 0.7)])], registry)
    chosen = flags_layer([("--set", "adapters.rates.lr", 0.7), ("--adapter", "adapters", "rates,descent")])
    resolved = resolve([INNER_LOOP, chosen], registry)
    assert [(choice.name, config_of(choice)["lr"]) for choice in resolved.adapters] == [
        ("rates", 0.7),
        ("descent", 0.4),
    ]


def test_regularizers_and_shorthands(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP, with_values(regularizers=["noise"])], registry)
    assert [choice.name for choice in resolved.regularizers] == ["noise"]
    cleared = resolve([INNER_LOOP, with_values(regularizers="noise"), with_values(regularizers={})], registry)
    assert cleared.regularizers == ()


def test_a_regularizer_is_refused_where_there_is_no_backbone_to_act_on(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"'plain' has no backbone for a regularizer to act on.*noise") as caught:
        resolve([PLAIN, with_values(regularizers=["noise"])], registry)
    assert "leave the regularizer out" in caught.value.remedy
    assert resolve([PLAIN, with_values(regularizers=[])], registry).regularizers == ()


def test_defaults_that_the_learner_has_no_use_for_are_dropped(registry: Registry) -> None:
    resolved = resolve([PLAIN], registry)
    assert resolved.backbone is None
    assert resolved.adapters == ()


@pytest.mark.parametrize("values", [{"backbone": "conv"}, {"backbone": {"channels": 3}}, {"adapters": ["descent"]}])
def test_components_that_the_learner_has_no_use_for_are_refused_when_given(
    registry: Registry, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"'plain' uses no (backbone|adapter)") as caught:
        resolve([PLAIN, Layer("--flag", values)], registry)
    assert caught.value.where == "--flag"


def test_a_component_that_is_needed_and_missing_is_an_error(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="needs an adapter"):
        resolve([INNER_LOOP, with_values(adapters={})], registry)


def test_kinds_of_learner_and_dataset_must_agree(registry: Registry) -> None:
    with pytest.raises(
        ConfigError, match="'plain' solves classification tasks, but the data set 'waves' has regression"
    ):
        resolve([with_values(learner="plain", dataset="waves")], registry)


def test_a_learner_is_required_unless_told_otherwise(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="inner-loop, plain"):
        resolve([with_values(dataset="pictures")], registry)
    resolved = resolve([with_values(dataset="pictures")], registry, complete=False)
    assert resolved.learner is None
    assert resolved.dataset is not None


def test_the_default_dataset_is_that_of_the_learner_s_kind(registry: Registry) -> None:
    entry = Entry("dataset", "standard", "json:JSONDecoder", "metaforge")
    with_default = Registry([*registry.entries(), entry], {"classification": "json:JSONDecoder"})
    assert with_default.default("classification") == entry
    assert with_default.default("regression") is None
    # A target of that name in another distribution is not the default.
    assert (
        Registry([Entry("dataset", "x", "json:JSONDecoder", "other")], {"classification": "json:JSONDecoder"}).default(
            "classification"
        )
        is None
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"trian": {}}, r"There is no setting 'trian'\. Did you mean 'train'\?"),
        ({"train": {"step": 3}}, r"There is no option 'train\.step'\. Did you mean 'steps'\?"),
        ({"learner": {"temprature": 1.0}}, r"'learner\.temprature'\. Did you mean 'temperature'\?"),
        ({"learner": {"inner": {"scal": 1.0}}}, r"'learner\.inner\.scal'\. Did you mean 'scale'\?"),
        ({"train": {"lr": float("nan")}}, r"train\.lr is nan"),
        ({"train": {"lr": float("inf")}}, r"train\.lr is inf"),
        ({"learner": {"temperature": float("nan")}}, r"learner\.temperature is nan"),
        ({"train": {"steps": True}}, r"train\.steps is True, but should be a number"),
        ({"learner": {"layers": [8, True]}}, r"learner\.layers is True, but should be a number"),
        ({"learner": {"bias": 1}}, r"learner\.bias is 1, but should be true or false"),
        ({"train": {"steps": -1}}, r"train\.steps is -1"),
        ({"task": {"ways": 0}}, r"task\.ways is 0"),
        ({"evaluate": {"tasks": 0}}, r"evaluate\.tasks is 0"),
        ({"train": {"budget": "soon"}}, r"'soon' is not a duration"),
        ({"train": {"budget": 0}}, r"train\.budget is 0"),
        ({"train": 3}, r"train is 3"),
        ({"device": "gpu"}, r"device is 'gpu'"),
        ({"learner": 3}, "learner is 3, not a table"),
        ({"adapters": {"descent": 3}}, r"adapters\.descent is 3, not a table"),
        ({"adapters": 3}, "adapters is 3, not a table"),
        ({"learner": {"name": 3}}, r"learner\.name is 3"),
    ],
)
def test_bad_values_are_named_by_dotted_path(registry: Registry, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        resolve([PLAIN, with_values(**values)], registry)
    assert caught.value.remedy


def test_all_bad_values_are_named_at_once(registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([PLAIN, with_values(train={"lr": -1, "steps": "many"})], registry)
    assert "train.lr" in caught.value.what
    assert "train.steps" in caught.value.what
    assert caught.value.where == "test"


def test_plugin_defaults_may_not_choose_a_learner_or_dataset(registry: Registry) -> None:
    class Bossy(Pictures):
        defaults: ClassVar[Any] = {"classification": {"learner": {"name": "plain"}}}

    with pytest.raises(PluginError, match="choose a learner"):
        resolve([with_values(learner="plain", dataset="bossy")], registry.with_plugin("dataset", "bossy", Bossy))


@pytest.mark.parametrize(
    ("text", "value"),
    [("10m", 600.0), ("90s", 90.0), ("1h", 3600.0), ("1h30m", 5400.0), ("45", 45.0), (12, 12.0), (0.5, 0.5)],
)
def test_budget_is_a_duration(registry: Registry, text: Any, value: float) -> None:
    assert resolve([PLAIN, with_values(train={"budget": text})], registry).run.train.budget == value


def round_trip(resolved: Resolved, registry: Registry, folder: Path) -> Resolved:
    path = folder / "config.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    return resolve([file_layer(path)], registry)


@pytest.mark.parametrize(
    "values",
    [
        {"learner": "plain", "dataset": "pictures"},
        {"learner": {"name": "plain", "floor": 0.5, "inner": {"scale": None}}, "dataset": "pictures"},
        {"learner": "inner-loop", "dataset": "pictures", "train": {"clip": None, "budget": "10m"}},
        {"learner": "inner-loop", "dataset": "pictures", "train": {"clip": "none"}, "regularizers": ["noise"]},
        {"learner": "inner-loop", "dataset": "waves", "adapters": {"rates": {"lr": 2}, "descent": {}}},
        {"learner": "inner-loop", "dataset": "waves", "evaluate": {"shots": [1, 5], "steps": [0, 1]}},
    ],
)
def test_the_written_file_alone_reproduces_the_configuration(
    registry: Registry, tmp_path: Path, values: dict[str, Any]
) -> None:
    resolved = resolve([with_values(**values)], registry)
    again = round_trip(resolved, registry, tmp_path)
    assert again == resolved
    assert again.to_dict() == resolved.to_dict()
    assert json.loads(json.dumps(resolved.to_dict())) == resolved.to_dict()


def test_none_clears_a_value_that_a_plugin_s_default_sets(registry: Registry, tmp_path: Path) -> None:
    resolved = resolve([INNER_LOOP, flags_layer([("--set", *parse_setting("train.clip=none"))])], registry)
    assert resolved.run.train.clip is None
    assert tomllib.loads(resolved.to_toml())["train"]["clip"] == "none"


def test_every_value_has_an_origin(registry: Registry) -> None:
    resolved = resolve([INNER_LOOP], registry)
    for path in ("seed", "evaluate.shots", "dataset.rotations", "backbone.channels", "adapters.descent.lr"):
        assert path in resolved.origins


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("true", True),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("10m", "10m"),
        ("leo", "leo"),
        ("2020-01-01", "2020-01-01"),
        ("", ""),
        ("1\nb = 2", "1\nb = 2"),
        ("{a = 1}", {"a": 1}),
    ],
)
def test_values_of_flags_are_toml_or_bare_words(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_flags_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="different values"):
        flags_layer([("--learner", "learner.name", "a"), ("--set", "learner.name", "b")])
    assert flags_layer([("--learner", "learner.name", "a"), ("--set", "learner.name", "a")]).values == {
        "learner": {"name": "a"}
    }
    with pytest.raises(ConfigError, match="reaches into a value") as caught:
        flags_layer([("--set", "train", 1), ("--set", "train.lr", 1)])
    assert caught.value.remedy
    with pytest.raises(ConfigError, match="key=value"):
        parse_setting("train.lr")
    with pytest.raises(ConfigError):
        flags_layer([("--set", "train..lr", 1)])


def test_files_that_cannot_be_read_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        file_layer(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("a = = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        file_layer(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        file_layer(tmp_path / "binary.toml")


def test_the_data_root_is_the_environment_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("METAFORGE_DATA")
    assert data_root().name == "metaforge"
