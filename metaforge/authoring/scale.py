"""How the scores of a kind of task are named, compared and printed. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

# The most characters of a text of a scale: it stands in headings and on axes.
_LONGEST = 100


@dataclass(frozen=True)
class Scale:
    """How the scores of a kind of task are named, compared and printed.

    It is plain data: the record of an evaluation keeps it, so that its scores can be printed and compared where the
    plugin is not installed.

    Attributes:
        metric: Name of the score.
        higher_is_better: Whether a higher score is better; an error is better when it is lower.
        words: What headings and axes call the score; an empty string for its name.
        percent: Whether the score is a share in [0, 1] that is printed in per cent.
        unit: Unit that is printed after the score, such as `°`.
        minimum: The lowest possible score; None if there is none.
        counts: Whether a task's score is the share of its queries that are right. It is then a multiple of one over
            their number.
        chance: What the score that needs no input is called (`TaskKind.chance`).
        floor: What the score of a simple method is called (`TaskKind.floor`).
        examples: What the support examples of a task are called, as in `10 points`. It is not used where tasks have
            classes: these are called `5-way 1-shot`.

    Raises:
        ValueError: A text is longer than 100 characters or has control characters, the metric has no name, or the score
            counts queries and is no share.

    Example:
        >>> from metaforge.authoring import Scale
        >>> Scale("angular error", higher_is_better=False, unit="°", minimum=0.0).title
        'angular error'
    """

    metric: str
    higher_is_better: bool
    words: str = ""
    percent: bool = False
    unit: str = ""
    minimum: float | None = None
    counts: bool = False
    chance: str = "chance"
    floor: str = "nearest neighbour"
    examples: str = "examples"

    def __post_init__(self) -> None:
        for text in (self.metric, self.words, self.unit, self.chance, self.floor, self.examples):
            if len(text) > _LONGEST or not text.isprintable():
                raise ValueError(f"a text of a scale is {text[:_LONGEST]!r}; use at most {_LONGEST} printable letters")
        if not self.metric:
            raise ValueError("the metric of a scale has no name")
        if self.counts and not self.percent:
            raise ValueError("a score that counts queries is a share of them: set percent too")

    @property
    def title(self) -> str:
        """What headings and axes call the score."""
        return self.words or self.metric

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The lowest and the highest possible score; None where there is none."""
        return (0.0, 1.0) if self.percent else (self.minimum, None)


ACCURACY = Scale("accuracy", higher_is_better=True, percent=True, counts=True, examples="")
MEAN_SQUARED_ERROR = Scale(
    "mse",
    higher_is_better=False,
    words="mean squared error",
    minimum=0.0,
    chance="support mean",
    examples="points",
)
LABEL_ACCURACY = Scale(
    "label accuracy", higher_is_better=True, words="accuracy per label", percent=True, chance="support majority"
)
RETURN = Scale("return", higher_is_better=True, words="mean return", examples="rollouts")
