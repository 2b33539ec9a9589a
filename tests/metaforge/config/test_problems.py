"""Every error of pydantic that the type of an option can produce becomes a plain sentence."""

from __future__ import annotations

import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    DirectoryPath,
    Field,
    FilePath,
    HttpUrl,
    NewPath,
    ValidationError,
    create_model,
)

from metaforge.authoring.protocols import Options
from metaforge.config.problems import sentence
from metaforge.config.validation import validate
from metaforge.errors import ConfigError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Options):
    width: int = 1


class Circle(BaseModel):
    shape: Literal["circle"]


class Square(BaseModel):
    shape: Literal["square"]


def small(value: int) -> int:
    if value > 5:
        raise ValueError("it should be small")
    if value == 4:
        raise AssertionError("it should not be four")
    return value


# The error type of pydantic, the type of an option, an invalid value, and the sentence on it.
CASES: list[tuple[str, Any, Any, str]] = [
    ("int_type", int, [], "x.y is [], but should be an integer."),
    ("int_parsing", int, "many", "x.y is 'many', but should be an integer."),
    ("int_from_float", int, 1.5, "x.y is 1.5, but should be an integer."),
    ("finite_number", int, float("inf"), "x.y is inf, but should be a finite number."),
    ("float_type", float, [], "x.y is [], but should be a number."),
    ("float_parsing", float, "many", "x.y is 'many', but should be a number."),
    ("bool_type", bool, [], "x.y is [], but should be true or false."),
    ("bool_parsing", bool, "maybe", "x.y is 'maybe', but should be true or false."),
    ("string_type", str, 3, "x.y is 3, but should be a string."),
    (
        "string_too_short",
        Annotated[str, Field(min_length=1)],
        "",
        "x.y is '', but should be a string of at least 1 character.",
    ),
    (
        "string_too_long",
        Annotated[str, Field(max_length=2)],
        "abc",
        "x.y is 'abc', but should be a string of at most 2 characters.",
    ),
    (
        "string_pattern_mismatch",
        Annotated[str, Field(pattern="^a+$")],
        "b",
        "x.y is 'b', but should be a string that matches the regular expression ^a+$.",
    ),
    ("greater_than", Annotated[int, Field(gt=0)], 0, "x.y is 0, but should be greater than 0."),
    ("greater_than_equal", Annotated[int, Field(ge=0)], -1, "x.y is -1, but should be greater than or equal to 0."),
    ("less_than", Annotated[float, Field(lt=1)], 1.0, "x.y is 1.0, but should be less than 1."),
    ("less_than_equal", Annotated[float, Field(le=1)], 2, "x.y is 2, but should be less than or equal to 1."),
    ("multiple_of", Annotated[int, Field(multiple_of=3)], 4, "x.y is 4, but should be a multiple of 3."),
    ("literal_error", Literal["a", "b", "c"], "d", "x.y is 'd', but should be 'a', 'b' or 'c'."),
    ("enum", Colour, "green", "x.y is 'green', but should be 'red' or 'blue'."),
    ("list_type", list[int], 3, "x.y is 3, but should be a list."),
    ("tuple_type", tuple[int, ...], 3, "x.y is 3, but should be a list."),
    ("set_type", set[int], 3, "x.y is 3, but should be a list."),
    ("frozen_set_type", frozenset[int], 3, "x.y is 3, but should be a list."),
    (
        "too_short",
        Annotated[list[int], Field(min_length=2)],
        [1],
        "x.y is [1], but should be a list of at least 2 items.",
    ),
    (
        "too_long",
        Annotated[list[int], Field(max_length=1)],
        [1, 2],
        "x.y is [1, 2], but should be a list of at most 1 item.",
    ),
    ("too_long", tuple[int, int], [1, 2, 3], "x.y is [1, 2, 3], but should be a list of at most 2 items."),
    (
        "too_short",
        Annotated[dict[str, int], Field(min_length=2)],
        {},
        "x.y is {}, but should be a table of at least 2 entries.",
    ),
    ("missing", tuple[int, int], [1], "x.y.1 is required."),
    ("int_parsing", list[int], [1, "b"], "x.y.1 is 'b', but should be an integer."),
    ("dict_type", dict[str, int], 3, "x.y is 3, but should be a table."),
    ("int_parsing", dict[str, int], {"a": "b"}, "x.y.a is 'b', but should be an integer."),
    ("int_parsing", dict[int, int], {"a": 1}, "x.y.a is 'a', but should be an integer."),
    ("model_type", Inner, 3, "x.y is 3, but should be a table."),
    ("int_parsing", Inner, {"width": "b"}, "x.y.width is 'b', but should be an integer."),
    (
        "extra_forbidden",
        Inner,
        {"wide": 1},
        "There is no option 'x.y.wide'. Did you mean 'width'? The options of x.y are width.",
    ),
    (
        "extra_forbidden",
        Inner | None,
        {"wide": 1},
        "There is no option 'x.y.wide'. Did you mean 'width'? The options of x.y are width.",
    ),
    ("none_required", None, 3, "x.y is 3, but should be none."),
    ("int_type", int | str, [], "x.y is [], but should be an integer or a string."),
    (
        "greater_than",
        Annotated[float, Field(gt=0)] | Literal["auto"],
        -1,
        "x.y is -1, but should be greater than 0 or 'auto'.",
    ),
    ("model_type", Inner | int, "b", "x.y is 'b', but should be a table or an integer."),
    ("missing", Circle | int, {}, "x.y.shape is required.\nx.y is {}, but should be an integer."),
    ("path_type", Path, 3, "x.y is 3, but should be a path."),
    ("path_not_file", FilePath, "/nowhere", "x.y is '/nowhere', but should be the path of a file that exists."),
    (
        "path_not_directory",
        DirectoryPath,
        "/nowhere",
        "x.y is '/nowhere', but should be the path of a folder that exists.",
    ),
    ("path_exists", NewPath, "/", "x.y is '/', but should be a path at which nothing exists yet."),
    ("url_type", HttpUrl, 3, "x.y is 3, but should be a URL."),
    ("url_parsing", HttpUrl, "b", "x.y is 'b', but should be a valid URL."),
    ("date_from_datetime_parsing", datetime.date, "b", "x.y is 'b', but should be a valid date or datetime."),
    ("value_error", Annotated[int, AfterValidator(small)], 6, "x.y: it should be small."),
    ("assertion_error", Annotated[int, AfterValidator(small)], 4, "x.y: it should not be four."),
    (
        "union_tag_invalid",
        Annotated[Circle | Square, Field(discriminator="shape")],
        {"shape": "line"},
        "x.y is "
        "{'shape': 'line'}, which is invalid: Input tag 'line' found using 'shape' does not match any of the expected "
        "tags: 'circle', 'square'.",
    ),
]


@pytest.mark.parametrize(("kind", "annotation", "value", "message"), CASES)
def test_every_error_is_a_sentence(kind: str, annotation: Any, value: Any, message: str) -> None:
    model = create_model("Sample", __base__=Options, y=(annotation, ...))
    with pytest.raises(ValidationError) as error:
        model.model_validate({"y": value})
    assert kind in [details["type"] for details in error.value.errors()]
    with pytest.raises(ConfigError) as raised:
        validate(model, {"y": value}, "x", {})
    assert raised.value.what == message


def test_an_integer_of_too_many_digits_is_refused() -> None:
    model = create_model("Sample", __base__=Options, y=(int, ...))
    with pytest.raises(ConfigError, match=r"x\.y is '9+…, but should be an integer of fewer digits\."):
        validate(model, {"y": "9" * 5000}, "x", {})


def test_the_message_of_an_unknown_error_is_quoted() -> None:
    details = {"type": "new_in_pydantic_9", "msg": "Numbers should be lucky.", "input": 13}
    assert sentence("x.y", [details]) == "x.y is 13, which is invalid: Numbers should be lucky."
