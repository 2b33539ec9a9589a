"""Which pictures are drawn for a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fake_runs import Certain, FakeRun, completion_run, regression_run
from metaforge.errors import DataError
from metaforge.results.run_pictures import draw
from pictures import colours
from run_folders import run_evaluation, write_metrics


def test_training_scores_steps_and_tasks_are_drawn(tmp_path: Path) -> None:
    for run, last in ((FakeRun(tmp_path / "a"), "episode-test"), (regression_run(tmp_path / "b"), "fits-test")):
        assert run.folder is not None
        run_evaluation(run)
        write_metrics(run.folder / "metrics.jsonl", 5)
        drawn = draw(run, split="test")
        ways = run.resolved.run.task.ways
        shots = run.resolved.run.task.shots
        assert [path.stem for path in drawn] == ["training", f"scores-test-{ways}w{shots}s", "steps-test", last]
        for path in drawn:
            colours(path)


def test_tasks_on_a_grid_are_drawn_as_images_for_every_size_of_the_support_set(tmp_path: Path) -> None:
    widths = {}
    for name, learner, shots in (("one", {}, [3]), ("two", {}, [3, 5]), ("certain", {"learner": Certain}, [3])):
        run = completion_run(tmp_path / name, **learner)
        run_evaluation(run, shots=shots)
        drawn = draw(run, split="test")
        assert drawn[-1] == tmp_path / name / "pictures" / "images-test.png"
        found = colours(drawn[-1])
        # The third image, the predicted mean, and the pixels that are not given.
        assert (76, 76, 76) in found
        assert (127, 127, 127) in found
        assert (0x56, 0xB4, 0xE9) in found
        with Image.open(drawn[-1]) as picture:
            widths[name] = picture.width
    # Image, given pixels, mean and deviation; one column fewer without a deviation, three more for another size.
    assert widths["certain"] < widths["one"] < widths["two"]


def test_an_image_without_a_pixel_to_predict_is_not_drawn(tmp_path: Path) -> None:
    run = completion_run(tmp_path)
    run_evaluation(run)
    run.dataset.grid = lambda split: (1, 3)
    assert [path.stem for path in draw(run, split="test")] == ["scores-test-1w3s"]


def test_without_training_or_evaluation_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw(FakeRun(tmp_path), split="test") == []
    assert draw(FakeRun(None), split="test") == []


def evaluated(folder: Path, run: FakeRun | None = None, **changes: Any) -> FakeRun:
    """Return a run with one evaluation, in whose record some fields are changed."""
    run = run or FakeRun(folder)
    run_evaluation(run)
    path = next((folder / "evaluation").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return run


@pytest.mark.parametrize("field", ["shots", "ways", "split"])
def test_a_path_in_a_record_leads_to_no_file_outside_the_folder(tmp_path: Path, field: str) -> None:
    """A picture was written to, and folders were made at, a path that somebody else's record named."""
    folder = tmp_path / "deep" / "run"
    folder.mkdir(parents=True)
    for value in ("x/../../../PWNED", f"{tmp_path}/PWNED", "../../evaluation"):
        run = evaluated(folder, **{field: value})
        assert draw(run, split="test") == []
        assert draw(run, split=value) == []
    assert [path.name for path in tmp_path.rglob("*") if "PWNED" in path.name] == []
    assert [path.name for path in folder.iterdir()] == ["evaluation"]


def test_pictures_are_not_drawn_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "pictures").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="would not be a file inside the folder"):
        draw(evaluated(tmp_path / "run"), split="test")
    assert not any((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"ways": 100_000, "queries": 100_000},
        {"own_steps": 2, "scores": [{"steps": 10**18, "mean": 0.5, "sd": 0.0, "ci": 0.0, "tasks": 8}]},
    ],
)
def test_a_task_of_a_record_that_would_take_forever_is_not_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    if "scores" in changes:
        changes["per_task"] = {
            **{name: [0.5] * 8 for name in ("chance", "floor")},
            "scores": {str(10**18): [0.5] * 8},
            "measures": {name: [0.5] * 8 for name in ("instance 1", "key")},
        }
    drawn = draw(evaluated(tmp_path, **changes), split="test")
    assert drawn
    assert not [path for path in drawn if path.stem == "episode-test"]


def test_a_record_of_tasks_that_the_data_set_does_not_have_is_plotted_without_a_task(tmp_path: Path) -> None:
    run = evaluated(tmp_path)

    def sample(*_: Any, **__: Any) -> Any:
        raise DataError("there are only 5 classes")

    run.dataset.sample = sample
    assert [path.stem for path in draw(run, split="test")] == ["scores-test-5w1s", "steps-test"]


def test_names_in_titles_are_no_formulas_and_no_control_characters(tmp_path: Path) -> None:
    """matplotlib parsed a name between dollar signs as a formula, and raised an error for an invalid one."""
    run = evaluated(tmp_path, learner="$\\frac$ \x1b\n" + "x" * 900, dataset="$")
    for path in draw(run, split="test"):
        colours(path)
