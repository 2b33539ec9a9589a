"""How scores read: names, bounds, and texts that cannot break a heading."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from metaforge.authoring.scale import ACCURACY, LABEL_ACCURACY, MEAN_SQUARED_ERROR, RETURN, Scale


def test_a_scale_has_a_title_and_bounds() -> None:
    assert [scale.title for scale in (ACCURACY, MEAN_SQUARED_ERROR, LABEL_ACCURACY, RETURN)] == [
        "accuracy",
        "mean squared error",
        "accuracy per label",
        "mean return",
    ]
    assert [scale.bounds for scale in (ACCURACY, MEAN_SQUARED_ERROR, RETURN)] == [(0, 1), (0, None), (None, None)]
    assert (ACCURACY.higher_is_better, MEAN_SQUARED_ERROR.higher_is_better) == (True, False)


@pytest.mark.parametrize("text", ["x" * 101, "red \x1b[31m", "two\nlines"])
@pytest.mark.parametrize("field", ["metric", "words", "unit", "chance", "floor", "examples"])
def test_a_text_that_no_heading_can_hold_is_refused(field: str, text: str) -> None:
    with pytest.raises(ValueError, match="a text of a scale"):
        Scale(**{**asdict(RETURN), field: text})


def test_a_metric_has_a_name() -> None:
    with pytest.raises(ValueError, match="has no name"):
        Scale("", higher_is_better=True)


def test_a_count_of_queries_is_a_share_of_them() -> None:
    with pytest.raises(ValueError, match="set percent too"):
        Scale("hits", higher_is_better=True, counts=True)
