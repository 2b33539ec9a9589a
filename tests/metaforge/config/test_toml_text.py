"""Settings as TOML: leaves by dotted path, `none` for None, and one annotated value per line."""

from __future__ import annotations

import tomllib

from metaforge.config.toml_text import annotated_toml, flatten, to_toml_values


def test_leaves_have_dotted_paths_and_an_empty_table_is_a_leaf() -> None:
    values = {"seed": 1, "train": {"lr": 0.1, "more": {"x": [1, 2]}}, "hooks": {}}
    assert list(flatten(values)) == [("seed", 1), ("train.lr", 0.1), ("train.more.x", [1, 2]), ("hooks", {})]


def test_the_word_none_stands_for_none_everywhere() -> None:
    assert to_toml_values({"a": None, "b": {"c": [None, 1]}, "d": "x"}) == {
        "a": "none",
        "b": {"c": ["none", 1]},
        "d": "x",
    }


def test_annotated_text_is_toml_with_an_origin_on_each_line() -> None:
    values = {"seed": 1, "train": {"schedule": "cosine"}, "hooks": {"zoo:x": {"on": True}}, "adapters": {}}
    origins = {"seed": "default", "train.schedule": "run.toml", "hooks.zoo:x.on": "--hook", "adapters": "default"}
    text = annotated_toml(values, origins)
    assert tomllib.loads(text) == values
    lines = text.splitlines()
    assert [line.partition("  # ")[2] for line in lines] == ["default", "run.toml", "--hook", "default"]
    assert len({line.index("  # ") for line in lines}) == 1
    assert 'hooks."zoo:x".on = true' in text


def test_a_key_with_a_dot_is_quoted_in_its_path_and_in_the_text() -> None:
    values = {"train": {"groups": {"model.*": {"lr": 0.1}}}}
    ((path, _),) = flatten(values)
    assert path == 'train.groups."model.*".lr'
    text = annotated_toml(values, {path: "--set"})
    assert text == 'train.groups."model.*".lr = 0.1  # --set'
    assert tomllib.loads(text) == values
