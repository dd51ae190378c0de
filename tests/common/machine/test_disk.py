"""A disk that runs full is told of once, and so is room that came back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from lorica.common.machine.disk import DiskWatch


def test_scarce_room_is_told_once_and_its_end_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    free = shutil.disk_usage(tmp_path).free
    watch = DiskWatch(tmp_path, least=2 * free, every=0)
    for _ in range(3):
        watch.look()
    assert caplog.text.count("LOR-601") == 1 and str(tmp_path) in caplog.text
    watch._least = 0
    for _ in range(3):
        watch.look()
    assert caplog.text.count("there is room again") == 1


def test_enough_room_and_a_folder_that_is_gone_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    DiskWatch(tmp_path, least=1).look()
    DiskWatch(tmp_path / "gone").look()
    assert not caplog.text
