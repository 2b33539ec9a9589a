"""The rows of the reliability campaign about data from outside, each with a small number of its cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.reliability.archives import hostile_archives
from tests.reliability.downloads import bad_downloads
from tests.reliability.images import LIMIT_MIB, decoded_elsewhere, fuzzed_images
from tests.reliability.properties import properties
from tests.reliability.rows import Measured, Room
from tests.reliability.settings import senseless_values, typing_mistakes
from tests.reliability.shapes import misshapen_data


def assert_passed(measured: Measured) -> None:
    assert measured.passed, f"{measured.text}\n{measured.numbers}"


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    assert_passed(hostile_archives(Room(tmp_path), fuzzed=100))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_bad_downloads_are_never_taken(tmp_path: Path) -> None:
    assert_passed(bad_downloads(Room(tmp_path), kill=False))


def test_hostile_images_are_refused_by_name(tmp_path: Path) -> None:
    assert_passed(fuzzed_images(Room(tmp_path), count=60))


def test_memory_beyond_the_limit_is_seen(tmp_path: Path) -> None:
    assert json.loads(decoded_elsewhere(tmp_path).stdout)["growth_mib"] < 50
    assert json.loads(decoded_elsewhere(tmp_path, waste_mib=400).stdout)["growth_mib"] > LIMIT_MIB


def test_misshapen_data_end_in_a_sentence(tmp_path: Path) -> None:
    assert_passed(misshapen_data(Room(tmp_path)))


def test_mistyped_settings_are_refused_with_the_right_name(tmp_path: Path) -> None:
    assert_passed(typing_mistakes(Room(tmp_path), count=80))


def test_senseless_values_are_refused(tmp_path: Path) -> None:
    assert_passed(senseless_values(Room(tmp_path), count=120))


def test_properties_hold_on_random_examples(tmp_path: Path) -> None:
    assert_passed(properties(Room(tmp_path), count=20))
