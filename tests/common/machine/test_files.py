"""Files are written whole or not at all, and failures are coded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica.common.errors import Code
from lorica.common.machine.files import append_line, create_atomically, write_atomically
from tests.conftest import largest_file

Refuses = Callable[[Code, Callable[[], object]], str]

LIMIT = 10_000


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"\x00\xff", "naïve 日本\n", "x" * 100_000], ids=len)
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old content that is longer than some")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("old", [b"old", None])
def test_a_full_disk_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, old: bytes | None, refuses: Refuses
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    before = names(tmp_path)
    with largest_file(LIMIT):
        detail = refuses(Code.STORAGE_FULL, lambda: write_atomically(path, b"x" * 3 * LIMIT))
    assert str(path) in detail
    assert names(tmp_path) == before
    assert old is None or path.read_bytes() == old


def test_appending_to_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, refuses: Refuses
) -> None:
    path = tmp_path / "ledger"
    append_line(path, "first")
    append_line(path, "second")
    with largest_file(LIMIT):
        refuses(Code.STORAGE_FULL, lambda: append_line(path, "x" * 3 * LIMIT))
    assert path.read_text() == "first\nsecond\n"
    append_line(path, "third")
    assert path.read_text() == "first\nsecond\nthird\n"


def test_a_failed_first_line_leaves_no_file(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "ledger"
    with largest_file(LIMIT):
        refuses(Code.STORAGE_FULL, lambda: append_line(path, "x" * 3 * LIMIT))
    assert names(tmp_path) == []


def test_a_device_without_room_is_a_full_disk(refuses: Refuses) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    refuses(Code.STORAGE_FULL, lambda: append_line(full, "x"))


@pytest.mark.parametrize("write", [write_atomically, append_line])
def test_a_file_or_nothing_in_place_of_the_folder_is_refused(
    tmp_path: Path, write: Callable[[Path, str], None], refuses: Refuses
) -> None:
    (tmp_path / "file").write_text("x")
    for parent in ("file", "absent"):
        path = tmp_path / parent / "name"
        detail = refuses(Code.STORAGE_DENIED, lambda path=path: write(path, "content"))
        assert str(path) in detail
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("write", [write_atomically, append_line])
def test_a_folder_in_place_of_the_file_is_refused(
    tmp_path: Path, write: Callable[[Path, str], None], refuses: Refuses
) -> None:
    (tmp_path / "name").mkdir()
    refuses(Code.STORAGE_DENIED, lambda: write(tmp_path / "name", "content"))
    assert names(tmp_path) == ["name"]


def test_lines_are_appended_in_order_and_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = ["a", "", "naïve 日本"]
    for line in lines:
        append_line(path, line)
    assert path.read_bytes() == "".join(f"{line}\n" for line in lines).encode()


def test_writers_of_one_file_leave_one_of_their_contents_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [letter * 50_000 for letter in "abcd"]
    errors: list[BaseException] = []

    def work(content: str) -> None:
        try:
            for _ in range(10):
                write_atomically(path, content)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert path.read_text() in contents
    assert names(tmp_path) == ["file"]


def test_a_new_file_is_made_private_and_over_nothing(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "file"
    with largest_file(LIMIT):
        refuses(Code.STORAGE_FULL, lambda: create_atomically(path, b"x" * 3 * LIMIT, mode=0o600))
    assert names(tmp_path) == []
    assert create_atomically(path, b"first", mode=0o600)
    assert not create_atomically(path, b"second", mode=0o644)
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["file"]
    refuses(
        Code.STORAGE_DENIED,
        lambda: create_atomically(tmp_path / "absent" / "file", b"x", mode=0o600),
    )
