"""``make quick`` finds the tests of what a change touches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quick import ROOT, SIDES, asked_by, changed, selected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("client/ledger/chain.py", {"tests/client/ledger"}),
        ("tests/client/ledger/test_tamper.py", {"tests/client/ledger/test_tamper.py"}),
        ("tests/client/ledger/helpers.py", {"tests/client/ledger"}),
        ("tests/client/ledger/test_that_was_removed.py", set()),
        ("docs/architecture.md", {"tests/packaging"}),
        ("pyproject.toml", {"tests/packaging"}),
    ],
)
def test_a_changed_file_asks_for_the_tests_of_its_room(path: str, expected: set[str]) -> None:
    assert asked_by(path) == expected


def test_a_room_without_tests_of_its_own_has_those_that_import_it(tmp_path: Path) -> None:
    tests = tmp_path / "tests" / "client" / "cli"
    tests.mkdir(parents=True)
    (tests / "test_start.py").write_text("from lorica.client.site.check import check\n")
    (tests / "test_other.py").write_text("from lorica.client.ledger import opening\n")
    assert asked_by("client/site/check.py", tmp_path) == {"tests/client/cli/test_start.py"}


def test_every_module_has_tests() -> None:
    for side in SIDES:
        for module in (ROOT / side).rglob("*.py"):
            path = module.relative_to(ROOT).as_posix()
            if module.name != "__init__.py" and "_pb2" not in path and "versions/" not in path:
                assert asked_by(path), f"no test is of the room of {path}, and none imports it"


def test_a_file_within_a_chosen_folder_is_not_named_twice() -> None:
    both = {"client/ledger/chain.py", "tests/client/ledger/test_tamper.py"}
    assert selected(both) == ["tests/client/ledger"]


@pytest.mark.process
def test_what_is_not_yet_committed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.quick as quick

    monkeypatch.setattr(quick, "ROOT", tmp_path)
    quick.git("init", "--quiet", "--initial-branch", "main")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("")
    quick.git("add", ".")
    quick.git(*who, "commit", "--quiet", "-m", "first")
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "c.py").write_text("")
    assert changed() == {"a.py", "c.py"}
    quick.git("checkout", "--quiet", "-b", "mine")
    quick.git("add", ".")
    quick.git(*who, "commit", "--quiet", "-m", "second")
    (tmp_path / "b.py").write_text("1")
    assert changed() == {"a.py", "b.py", "c.py"}
    assert changed("HEAD") == {"b.py"}
