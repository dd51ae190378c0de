"""Cached states in files: the same values, private, whole or made anew, found after a restart."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from lorica.common.backbone.loading import load_backbone
from lorica.common.cache import batching
from lorica.common.cache import files as prefix_files
from lorica.common.cache.files import CacheFolder
from lorica.common.cache.prefix import predict_logits
from lorica.common.cache.shelf import CacheShelf
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.inputs import Encoded, encode
from lorica.common.tasks.text_classification import TextClassifier

WORDS = ["my", "card", "is", "lost", "again", "the", "doctor", "was", "very", "tired", "today"]
TEXTS = [" ".join(WORDS[i % 4 : i % 4 + 1 + (5 * i) % 8]) for i in range(40)]
SHAPE = 5, 3


class Counting:
    """Fills with 0, 1, 2, … and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, into: torch.Tensor) -> None:
        self.times += 1
        into.copy_(torch.arange(into.numel()).reshape(into.shape))


def get(folder: CacheFolder, fill: Counting, key: str = "k") -> torch.Tensor:
    found = folder.get(key, SHAPE, fill)
    assert found is not None
    assert torch.equal(found, torch.arange(15.0).reshape(SHAPE))
    return found


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_written_is_found_by_another_process_and_not_made_again(tmp_path: Path) -> None:
    fill = Counting()
    get(CacheFolder(tmp_path / "c", 10**6), fill)
    get(CacheFolder(tmp_path / "c", 10**6), fill)
    assert fill.times == 1
    get(CacheFolder(tmp_path / "c", 10**6), fill, key="other")
    assert fill.times == 2


def test_files_are_their_owners_alone_also_while_they_are_written(tmp_path: Path) -> None:
    seen = []

    class Looking(Counting):
        def __call__(self, into: torch.Tensor) -> None:
            super().__call__(into)
            seen.append(stat.S_IMODE(only(tmp_path / "c").stat().st_mode))

    get(CacheFolder(tmp_path / "c", 10**6), Looking())
    assert seen == [0o600] == [stat.S_IMODE(only(tmp_path / "c").stat().st_mode)]
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_changing_the_tensor_does_not_change_the_file(tmp_path: Path) -> None:
    folder, fill = CacheFolder(tmp_path / "c", 10**6), Counting()
    get(folder, fill).fill_(7.0)
    get(folder, fill)
    assert fill.times == 1


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def linked(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.replace(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: flip(path, 4096 + 4),
        lambda path: flip(path, 8),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o640),
        linked,
    ],
    ids=["a value", "the header", "cut", "empty", "open to the group", "a link"],
)
def test_a_file_that_cannot_be_trusted_is_made_anew(tmp_path: Path, spoil: Any) -> None:
    folder, fill = CacheFolder(tmp_path / "c", 10**6), Counting()
    get(folder, fill)
    spoil(only(tmp_path / "c"))
    get(folder, fill)
    assert fill.times == 2
    get(folder, fill)
    assert fill.times == 2 and stat.S_IMODE(only(tmp_path / "c").stat().st_mode) == 0o600


def test_a_filling_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(into: torch.Tensor) -> None:
        into.fill_(1.0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        CacheFolder(tmp_path / "c", 10**6).get("k", SHAPE, fails)
    assert not list((tmp_path / "c").iterdir())


def test_a_full_disk_costs_the_cache_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert CacheFolder(tmp_path / "c", 10**6).get("k", SHAPE, Counting()) is None
    assert not list((tmp_path / "c").iterdir())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(LoricaError) as caught:
        CacheFolder(tmp_path / "c", 10**6).get("k", SHAPE, Counting())
    assert caught.value.code is Code.STORAGE_DENIED


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    each = 4096 + 60
    folder, fill = CacheFolder(tmp_path / "c", 2 * each), Counting()
    for number, key in enumerate("ab"):
        get(folder, fill, key)
        newest = max((tmp_path / "c").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (number, number))
    get(folder, fill, "a")  # now the one used last
    get(folder, fill, "c")
    assert fill.times == 3 and len(list((tmp_path / "c").iterdir())) == 2
    get(folder, fill, "a")
    assert fill.times == 3
    get(folder, fill, "b")
    assert fill.times == 4
    assert CacheFolder(tmp_path / "small", each - 1).get("k", SHAPE, fill) is None


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    """A process that ends while it fills leaves its states; the folder's next user clears them."""
    child = os.fork()
    if not child:
        CacheFolder(tmp_path / "c", 10**6).get("k", SHAPE, lambda into: os._exit(7))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert only(tmp_path / "c").suffix == ".tmp"
    get(CacheFolder(tmp_path / "c", 10**6), Counting(), "other")
    assert only(tmp_path / "c").suffix == ".states"


def test_what_another_writes_now_is_kept_and_counts_to_the_limit(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "c", 2 * (4096 + 60))

    class Beside(Counting):
        def __call__(self, into: torch.Tensor) -> None:
            super().__call__(into)
            get(folder, Counting(), "beside")
            assert sorted(path.suffix for path in (tmp_path / "c").iterdir()) == [".states", ".tmp"]

    get(folder, Counting(), "before")
    get(folder, Beside())
    again = Counting()
    get(folder, again)
    get(folder, again, "beside")
    assert again.times == 0


@pytest.mark.parametrize("after_the_check", [False, True])
def test_a_file_that_another_process_removes_meanwhile_is_used_or_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_the_check: bool
) -> None:
    folder, fill = CacheFolder(tmp_path / "c", 10**6), Counting()
    get(folder, fill)
    name = "_sha256" if after_the_check else "make_private_folder"
    original = getattr(prefix_files, name)

    def removing(argument: Any) -> Any:
        found = original(argument)
        for path in (tmp_path / "c").glob("*.states"):
            path.unlink()
        return found

    monkeypatch.setattr(prefix_files, name, removing)
    get(folder, fill)
    assert fill.times == (1 if after_the_check else 2)


def made(folder: Path, **adapter: Any) -> tuple[Any, TextClassifier, Encoded]:
    plan = RunPlan().replace(
        backbone={"source": str(folder)}, task={"labels": ["a", "b", "c"]}, adapter=adapter
    )
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan).eval()
    generator = torch.Generator().manual_seed(0)
    classifier.load_state(
        {
            name: 0.3 * torch.randn(parameter.shape, generator=generator)
            for name, parameter in classifier.adapter_parameters.items()
        }
    )
    return backbone, classifier, encode(backbone, TEXTS, 64)


@pytest.mark.parametrize("adapter", [{"layers": [-1]}, {"kind": "head"}], ids=str)
def test_logits_from_files_are_those_from_memory_to_the_bit(
    small_backbone: Path, tmp_path: Path, adapter: dict[str, Any]
) -> None:
    """Memory for nothing (limit 0): what does not fit comes from the folder; a second shelf, as
    after a restart, reads it and computes no layer below."""
    backbone, classifier, encoded = made(small_backbone, **adapter)
    memory = CacheShelf().get(classifier, encoded, backbone=backbone)
    expected = predict_logits(classifier, memory)
    for _ in range(2):
        shelf = CacheShelf()
        shelf.keep_in(CacheFolder(tmp_path / "c", 10**9))
        cache = shelf.get(classifier, encoded, backbone=backbone, limit_bytes=0)
        assert torch.equal(predict_logits(classifier, cache), expected)
        assert cache.size_bytes == 0
        written = only(tmp_path / "c").stat().st_ino
    assert only(tmp_path / "c").stat().st_ino == written


def test_other_texts_have_another_file(small_backbone: Path, tmp_path: Path) -> None:
    backbone, classifier, encoded = made(small_backbone, layers=[-1])
    shelf = CacheShelf()
    shelf.keep_in(CacheFolder(tmp_path / "c", 10**9))
    shelf.get(classifier, encoded, backbone=backbone)
    shelf.get(classifier, Encoded(encoded.tokens[1:]), backbone=backbone)
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize("what", ["threads", "processor", "rows"])
def test_what_may_give_other_bits_of_a_text_has_a_file_of_its_own(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Else one text more would have all the others' states computed anew, as they are today."""
    backbone, classifier, encoded = made(small_backbone, layers=[-1])
    threads = torch.get_num_threads()
    for turn in range(2):
        shelf = CacheShelf()
        shelf.keep_in(CacheFolder(tmp_path / "c", 10**9))
        shelf.get(classifier, encoded, backbone=backbone)
        assert len(list((tmp_path / "c").iterdir())) == turn + 1
        if what == "threads":
            torch.set_num_threads(threads + 1)
        elif what == "processor":
            monkeypatch.setattr("lorica.common.cache.shelf.processor", lambda: "another")
        else:
            monkeypatch.setattr(batching._Machine, "least", 16)
    torch.set_num_threads(threads)
