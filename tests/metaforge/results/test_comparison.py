"""Tables of several runs: every score is there, with its protocol, its command and published scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_runs import regression_run
from metaforge.errors import ConfigError, DataError
from metaforge.results.comparison import main, read_published, read_run, write_comparison
from metaforge.results.records import scale_of
from metaforge.results.tables import estimate_text
from run_folders import run_folder


def test_runs_of_one_protocol_share_a_table(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "one")
    run_folder(tmp_path / "two", seed=8)
    lines = run_folder(tmp_path / "three", regression_run(tmp_path / "three"), shots=None)
    out = write_comparison(tmp_path / "docs" / "results.md", [tmp_path / name for name in ("one", "two", "three")])
    text = out.read_text()
    # With another seed the tasks are others, so the run is in another table.
    assert text.count("## pixels, 5-way 1-shot") == 2
    assert text.count("## pixels, 2 points") == 1
    for result in (*first["results"], *lines["results"]):
        for score in result["scores"]:
            assert estimate_text(score, scale_of(result)) in text
    for part in ("side = 4", "support", "400", "1 min 23 s", "x86_64", "The data are synthetic.", "| instance 1"):
        assert part in text
    assert text.count("metaforge train --learner reader --seed 3") == 3
    assert "published" not in text


def test_a_run_that_is_older_than_an_option_shares_the_table(tmp_path: Path) -> None:
    tables = {
        "old": 'name = "glyphs"\nsize = 28\n',
        "new": 'name = "glyphs"\ntask = "classification"\nsize = 28\njitter = 1.0\n',
        "other": 'name = "glyphs"\nsize = 20\n',
    }
    for name, table in tables.items():
        run_folder(tmp_path / name)
        (tmp_path / name / "config.toml").write_text(f"[dataset]\n{table}")
    options = {name: read_run(tmp_path / name).options for name in tables}
    assert options["old"] == options["new"]
    assert options["old"]["writers"] == 20
    assert options["other"] == {**options["old"], "size": 20}
    text = write_comparison(tmp_path / "r.md", [tmp_path / name for name in tables]).read_text()
    # Two numbers of shots, each with a table of two sizes.
    assert text.count("## pixels, 5-way") == 4


def test_a_learners_own_metrics_have_a_table(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    text = write_comparison(tmp_path / "r.md", [tmp_path / "one"]).read_text()
    assert "Own metrics of reader:\n\n| run | instance 1" in text


def test_published_scores_are_shown_with_their_source(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    published = tmp_path / "published.toml"
    published.write_text(
        '[[published]]\nlearner = "reader"\ndataset = "pixels"\nways = 5\nshots = 1\n'
        'score = "98.7 ± 0.4 %"\nsource = "A paper, table 1"\n'
    )
    text = write_comparison(tmp_path / "r.md", [tmp_path / "one"], published=published).read_text()
    assert "98.7 ± 0.4 % [1]" in text
    assert "[1] reader: A paper, table 1" in text
    assert text.count("98.7") == 1


def test_published_scores_can_be_those_with_other_adapters_and_regularizers(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    with (tmp_path / "one" / "config.toml").open("a") as file:
        file.write("\n[adapters.scale]\n[adapters.sgd]\n[regularizers.noise]\n")
    published = tmp_path / "published.toml"
    entry = '[[published]]\nlearner = "reader"\ndataset = "pixels"\nways = 5\nshots = 1\n'
    published.write_text(
        f'{entry}plugins = ["scale", "sgd", "noise"]\nscore = "98 %"\nsource = "A paper"\n'
        f'{entry}plugins = ["sgd"]\nscore = "97 %"\nsource = "Another paper"\n'
    )
    text = write_comparison(tmp_path / "r.md", [tmp_path / "one"], published=published).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| reader ")]
    assert all("scale, sgd, noise" in row for row in rows)
    assert sum("98 % [1]" in row for row in rows) == 1
    assert "97 %" not in text
    assert "[1] reader with scale, sgd, noise: A paper" in text


def test_incomplete_published_scores_are_refused(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    (tmp_path / "published.toml").write_text('[[published]]\nlearner = "reader"\n')
    with pytest.raises(ConfigError, match="lacks dataset, ways, shots, score, source"):
        write_comparison(tmp_path / "r.md", [tmp_path / "one"], published=tmp_path / "published.toml")


def test_published_scores_are_optional_but_their_file_must_exist(tmp_path: Path) -> None:
    assert read_published(None) == []
    with pytest.raises(ConfigError, match="There is no file"):
        read_published(tmp_path / "missing.toml")


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no evaluation") as caught:
        read_run(tmp_path)
    assert f"metaforge evaluate {tmp_path}" in caught.value.remedy


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "one")
    assert main([str(tmp_path / "r.md"), str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.md'}\n"
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "r.md"), str(tmp_path / "empty")]) == 3
    assert "has no evaluation" in capsys.readouterr().err
