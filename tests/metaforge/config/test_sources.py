"""Sources: files, flags and settings become layers; unreadable and contradicting ones are errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from metaforge.config.sources import Layer, file_layer, flags_layer, normalise, parse_setting, parse_value
from metaforge.errors import ConfigError


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
    with pytest.raises(ConfigError, match=r"--set sets train to 1, but --lr sets train\.lr in it\.") as caught:
        flags_layer([("--set", "train", 1), ("--lr", "train.lr", 1)])
    assert caught.value.remedy
    with pytest.raises(ConfigError, match="key=value"):
        parse_setting("train.lr")
    with pytest.raises(ConfigError):
        flags_layer([("--set", "train..lr", 1)])


def test_a_key_with_a_dot_or_an_equals_sign_is_set_in_quotes() -> None:
    path, value = parse_setting('train.groups."adapters.*".lr=0.01')
    assert (path, value) == ('train.groups."adapters.*".lr', 0.01)
    layer = flags_layer([(f"--set {path}", path, value), ("--set other", "train.groups.'a.b=c'.min", 1)])
    assert layer.values == {"train": {"groups": {"adapters.*": {"lr": 0.01}, "a.b=c": {"min": 1}}}}
    assert layer.origin_of(path) == f"--set {path}"
    assert parse_setting("hooks.'a=b'.x=1=2") == ("hooks.'a=b'.x", "1=2")


def test_files_that_cannot_be_read_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        file_layer(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("a = = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        file_layer(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        file_layer(tmp_path / "binary.toml")


def test_a_flag_for_a_table_and_a_flag_for_a_key_in_it_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--set sets train to 1, but --lr sets train\.lr in it\."):
        flags_layer([("--lr", "train.lr", 1), ("--set", "train", 1)])


SINGLES = ("learner", "dataset", "backbone")
SETS = ("adapters", "regularizers", "hooks")


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("path", "other"),
    [
        *((f"{key}.name", key) for key in SINGLES),
        *((key, key) for key in (*SINGLES, *SETS)),
        *((f"{key}.x.lr", f"{key}.x.lr") for key in SETS),
    ],
)
def test_two_flags_that_choose_different_plugins_are_both_named(path: str, other: str, backwards: bool) -> None:
    flags = [("--one", path, "a"), ("--set two", other, "b")]
    with pytest.raises(ConfigError, match="different values") as caught:
        flags_layer(flags[::-1] if backwards else flags)
    assert "--one" in caught.value.what
    assert "--set two" in caught.value.what


@pytest.mark.parametrize("key", SINGLES)
def test_two_flags_that_choose_the_same_plugin_or_different_options_of_it_are_merged(key: str) -> None:
    flags = [("--one", f"{key}.name", "a"), ("--set two", key, "a"), ("--set three", f"{key}.x", 1)]
    for order in (flags, flags[::-1]):
        layer = flags_layer(order)
        assert layer.values == {key: {"name": "a", "x": 1}}
        assert layer.origin_of(f"{key}.x") == "--set three"
    table = [("--set one", key, {"name": "a", "x": 1}), ("--set two", f"{key}.y", 2)]
    assert flags_layer(table).values == {key: {"name": "a", "x": 1, "y": 2}}
    with pytest.raises(ConfigError, match=rf"--set one and --set two set {key}\.x to different values: 1, 2"):
        flags_layer([*table[:1], ("--set two", f"{key}.x", 2)])


@pytest.mark.parametrize("key", SETS)
def test_a_flag_that_chooses_a_set_and_flags_for_options_in_it_are_kept_apart(key: str) -> None:
    flags = [("--one", key, {"a": {"lr": 1}}), ("--set two", f"{key}.a", {"lr": 2}), ("--set three", f"{key}.b.x", 3)]
    for order in (flags, flags[::-1]):
        layer = flags_layer(order)
        assert layer.values == {key: {"a": {"lr": 1}}}
        assert layer.patches == {key: {"a": {"lr": 2}, "b": {"x": 3}}}


def test_a_file_becomes_one_layer_with_its_path_as_origin(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("\ufeffseed = 3\n[train]\nlr = 0.1\n", "utf-8")
    layer = file_layer(path)
    assert layer.values == {"seed": 3, "train": {"lr": 0.1}}
    assert layer.explicit
    assert layer.origin_of("train.lr") == str(path)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1,048,576 bytes"):
        file_layer(path)


def test_options_of_plugins_in_sets_are_patches() -> None:
    layer = flags_layer([("--adapter", "adapters", "a,b"), ("--set", "adapters.a.lr", 1), ("--set", "seed", 2)])
    assert layer.values == {"adapters": "a,b", "seed": 2}
    assert layer.patches == {"adapters": {"a": {"lr": 1}}}


def test_the_origin_of_a_value_is_that_of_the_nearest_table_around_it() -> None:
    layer = Layer("file", origins={"train": "--train", "train.lr": "--lr"})
    assert layer.origin_of("train.lr") == "--lr"
    assert layer.origin_of("train.steps") == "--train"
    assert layer.origin_of("seed") == "file"


@pytest.mark.parametrize(
    ("value", "table"),
    [
        ("a, b", {"a": {}, "b": {}}),
        (["b", "a"], {"b": {}, "a": {}}),
        ("none", {}),
        ([], {}),
        ({"a": {"lr": 1}}, {"a": {"lr": 1}}),
    ],
)
def test_every_form_of_a_set_becomes_a_table_per_plugin(value: Any, table: dict[str, Any]) -> None:
    layer = normalise(Layer("file", {"adapters": value, "learner": "x"}), ["adapters", "learner"])
    assert layer.values == {"adapters": table, "learner": {"name": "x"}}


def test_a_set_that_names_a_plugin_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapters names 'a' twice"):
        normalise(Layer("file", {"adapters": ["a", "b", "a"]}), ["adapters"])


def test_a_patch_must_be_a_table() -> None:
    with pytest.raises(ConfigError, match=r"adapters\.a is 3, not a table"):
        normalise(Layer("flags", patches={"adapters": {"a": 3}}), ["adapters"])  # type: ignore[dict-item]


def test_the_names_of_plugins_are_mapped_by_kind() -> None:
    layer = Layer("file", {"learner": {"name": "x", "lr": 1}, "backbone": {"width": 3}, "hooks": {"y": {"on": True}}})
    mapped = layer.map_plugin_names(lambda kind, name: f"{kind}:{name}")
    assert mapped.values == {
        "learner": {"name": "learner:x", "lr": 1},
        "backbone": {"width": 3},
        "hooks": {"hook:y": {"on": True}},
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.toml")
    for path in (tmp_path / "run.toml", Path(os.devnull)):
        with pytest.raises(ConfigError, match="is not a regular file") as caught:
            file_layer(path)
        assert "--config <(command)" in caught.value.remedy


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system does not name file descriptors")
def test_the_output_of_a_command_is_read_from_its_descriptor() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"seed = 3")
        os.close(writer)
        assert file_layer(Path(f"/dev/fd/{reader}")).values == {"seed": 3}
    finally:
        os.close(reader)
