"""The rows of the reliability campaign about untrusted data and settings, each with few cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.reliability.archives import hostile_archives
from tests.reliability.downloads import bad_downloads
from tests.reliability.images import LIMIT_MIB, decode_in_process, fuzzed_images
from tests.reliability.properties import properties
from tests.reliability.rows import Measured, Workspace
from tests.reliability.settings import senseless_values, typing_mistakes
from tests.reliability.shapes import misshapen_data


def assert_passed(measured: Measured) -> None:
    assert measured.passed, f"{measured.text}\n{measured.numbers}"


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    assert_passed(hostile_archives(Workspace(tmp_path), fuzzed=100))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_bad_downloads_are_never_accepted(tmp_path: Path) -> None:
    assert_passed(bad_downloads(Workspace(tmp_path), kill=False))


def test_hostile_images_are_refused_by_name(tmp_path: Path) -> None:
    assert_passed(fuzzed_images(Workspace(tmp_path), count=60))


def test_memory_beyond_the_limit_is_measured(tmp_path: Path) -> None:
    assert json.loads(decode_in_process(tmp_path).stdout)["growth_mib"] < 50
    assert json.loads(decode_in_process(tmp_path, waste_mib=400).stdout)["growth_mib"] > LIMIT_MIB


def test_invalid_data_end_with_one_message(tmp_path: Path) -> None:
    assert_passed(misshapen_data(Workspace(tmp_path)))


def test_misspelled_settings_are_refused_with_the_right_suggestion(tmp_path: Path) -> None:
    assert_passed(typing_mistakes(Workspace(tmp_path), count=80))


def test_invalid_values_are_refused(tmp_path: Path) -> None:
    assert_passed(senseless_values(Workspace(tmp_path), count=120))


def test_properties_hold_on_random_examples(tmp_path: Path) -> None:
    assert_passed(properties(Workspace(tmp_path), count=20))
