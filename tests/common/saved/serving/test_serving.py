"""The server over HTTP: predictions as of `lorica predict`, limits, tokens, batches, a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.predict import Predictor
from lorica.common.saved.serving.app import make_app
from lorica.common.saved.serving.batches import Batches
from lorica.common.saved.serving.bounds import Limits
from lorica.common.tasks.base import Prediction
from lorica.common.tasks.predictions import NumberPrediction
from tests.conftest import make_small_backbone
from tests.saved_adapters import random_adapter

TOKEN = "a-token-of-thirty-two-characters"
LIMITS = Limits(body_bytes=2000, texts=5, waiting=8, batch=4)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter with random values on the small backbone."""
    root = tmp_path_factory.mktemp("served")
    source = make_small_backbone(root / "backbone")
    return random_adapter(root / "adapter", source, ["a", "b", "c"])


@pytest.fixture(scope="module")
def client(adapter: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Predictor(adapter), token=TOKEN, limits=LIMITS)) as opened:
        opened.headers["Authorization"] = f"Bearer {TOKEN}"
        yield opened


def test_predictions_are_those_of_the_predictor(client: TestClient, adapter: Path) -> None:
    texts = ["my card is lost", "fever", "pain"]
    found = client.post("/v1/predict", json={"texts": texts})
    assert found.status_code == 200
    expected = [prediction.content() for prediction in Predictor(adapter)(texts)]
    for one, other in zip(found.json()["predictions"], expected, strict=True):
        assert one["predicted_label"] == other["predicted_label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b"{}",
        b'{"texts": []}',
        b'{"texts": "one"}',
        b'{"texts": [1]}',
        b'{"texts": ["a"], "other": 1}',
        b'{"texts": ["a"], "table": {"age": ["1", "2"]}}',
        b'{"texts": ["a", "b", "c", "d", "e", "f"]}',
        b'{"texts": ["  "]}',
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["a"], "table": {"age": ["1"]}}',
    ],
)
def test_what_cannot_be_answered_is_refused_by_a_code_and_a_sentence(
    client: TestClient, body: bytes
) -> None:
    found = client.post("/v1/predict", content=body)
    assert found.status_code == 422
    error = found.json()["error"]
    assert re.fullmatch(r"LOR-\d{3}", error["code"])
    assert error["message"].endswith(".") and error["how_to_mend_it"]


def test_a_body_beyond_the_bound_is_not_read_whole_whatever_it_says_of_its_size(
    client: TestClient,
) -> None:
    sent = []

    def parts() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 1000

    for content in (b"x" * 2001, parts()):
        found = client.post("/v1/predict", content=content)
        assert found.status_code == 413
        assert found.json()["error"]["code"] == Code.SERVER_REQUEST.value


@pytest.mark.parametrize("header", ["", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_nobody_without_the_token_is_answered_but_about_health(
    client: TestClient, header: str
) -> None:
    for path in ("/v1/predict", "/metrics", "/docs", "/openapi.json"):
        found = client.request("GET", path, headers={"Authorization": header})
        assert found.status_code == 401
        assert found.json()["error"]["code"] == Code.SERVER_TOKEN.value
    health = client.get("/health", headers={"Authorization": header}).json()
    assert health["status"] == "ok" and health["precision"] == "float32"


def test_metrics_and_openapi_say_what_was_done(client: TestClient) -> None:
    client.post("/v1/predict", json={"texts": ["fever"]})
    shown = client.get("/metrics").text
    assert float(re.search(r"^lorica_serve_texts_total (\S+)", shown, re.M).group(1)) >= 1  # type: ignore[union-attr]
    assert 'lorica_serve_requests_total{status="200"}' in shown
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]


def numbers(texts: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[Prediction]:
    if "bad" in texts:
        raise LoricaError(Code.DATA_EMPTY_TEXT, "A bad text.")
    return [NumberPrediction(float(text)) for text in texts]


def test_requests_that_come_together_share_batches_and_each_gets_its_own() -> None:
    held = threading.Event()

    def slow(texts: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[Prediction]:
        held.wait(10)
        return numbers(texts, table)

    async def run() -> tuple[list[list[Prediction]], list[int]]:
        batches = Batches(slow, most_texts=4, most_waiting=100)
        batches.start()
        asked = [asyncio.create_task(batches.ask([str(n), str(n + 0.5)], {})) for n in range(6)]
        await asyncio.sleep(0.05)
        held.set()
        found = await asyncio.gather(*asked)
        await batches.close()
        return found, batches.sizes

    found, sizes = asyncio.run(run())
    assert found == [[NumberPrediction(n), NumberPrediction(n + 0.5)] for n in range(6)]
    assert sizes == [4, 4, 4] or sizes == [2, 4, 4, 2]


def test_as_many_batches_as_there_are_hands_are_answered_at_a_time() -> None:
    together = threading.Barrier(2)

    def both(texts: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[Prediction]:
        together.wait(10)  # broken, and an error, where the other batch waits for this one
        return numbers(texts, table)

    async def run() -> list[list[Prediction]]:
        batches = Batches(both, most_texts=2, most_waiting=100, hands=2)
        batches.start()
        found = await asyncio.gather(*(batches.ask([str(n), str(n)], {}) for n in range(4)))
        await batches.close()
        return found

    assert asyncio.run(run()) == [[NumberPrediction(float(n))] * 2 for n in range(4)]


def test_who_waits_for_a_batch_in_hand_hears_when_the_server_stops() -> None:
    begun, held = threading.Event(), threading.Event()

    def stuck(texts: Sequence[str], table: Mapping[str, Sequence[str]]) -> list[Prediction]:
        begun.set()
        held.wait(10)
        return numbers(texts, table)

    async def run() -> None:
        batches = Batches(stuck, most_texts=2, most_waiting=100)
        batches.start()
        asked = asyncio.create_task(batches.ask(["1"], {}))
        await asyncio.to_thread(begun.wait, 10)
        await batches.close()
        with pytest.raises(LoricaError) as caught:
            await asked
        assert caught.value.code is Code.SERVER_BUSY

    try:
        asyncio.run(run())
    finally:
        held.set()


def test_many_threads_get_the_answers_of_one(adapter: Path) -> None:
    predictor = Predictor(adapter)
    texts = [["fever", "pain " * (1 + n % 7), f"case {n}"] for n in range(40)]
    alone = [predictor(few) for few in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predictor, texts)) == alone


@pytest.mark.parametrize(("gather", "sizes"), [(30.0, [3]), (0.3, [2])])
def test_texts_wait_for_others_until_a_batch_is_full_or_their_time_is_up(
    gather: float, sizes: list[int]
) -> None:
    async def run() -> tuple[float, list[int]]:
        batches = Batches(numbers, most_texts=3, most_waiting=100, gather=gather)
        batches.start()
        start = time.monotonic()
        asked = []
        for number in range(sizes[0]):
            asked.append(asyncio.create_task(batches.ask([str(number)], {})))
            await asyncio.sleep(0.01)
        assert not asked[0].done() or sizes == [3]
        await asyncio.gather(*asked)
        await batches.close()
        return time.monotonic() - start, batches.sizes

    took, found = asyncio.run(run())
    assert found == sizes
    assert took < 20 if sizes == [3] else took >= 0.3


def test_one_callers_bad_text_is_no_others_error() -> None:
    async def run() -> list[object]:
        batches = Batches(numbers, most_texts=10, most_waiting=100)
        asked = [
            asyncio.create_task(batches.ask([text], {})) for text in ("1", "bad", "2", "nonsense")
        ]
        await asyncio.sleep(0)
        batches.start()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await batches.close()
        return list(found)

    first, bad, second, wrong = asyncio.run(run())
    assert first == [NumberPrediction(1.0)] and second == [NumberPrediction(2.0)]
    assert isinstance(bad, LoricaError) and isinstance(wrong, ValueError)


def test_what_would_wait_too_long_is_refused_at_once() -> None:
    async def run() -> None:
        batches = Batches(numbers, most_texts=2, most_waiting=3)
        first = asyncio.create_task(batches.ask(["1", "2"], {}))
        await asyncio.sleep(0)
        with pytest.raises(LoricaError) as caught:
            await batches.ask(["3", "4"], {})
        assert caught.value.code is Code.SERVER_BUSY
        await batches.close()
        with pytest.raises(LoricaError):
            await first

    asyncio.run(run())


@pytest.mark.process
def test_the_command_serves_until_it_is_stopped(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    arguments = ["serve", str(adapter), "--port", "0", "--token-file", str(tmp_path / "token")]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", "from lorica.common.cli import main; main()", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "200"},
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+:\d+", (tmp_path / "out").read_text())):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        request = urllib.request.Request(
            f"{found.group(0)}/v1/predict",
            data=json.dumps({"texts": ["fever"]}).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert len(json.load(answer)["predictions"]) == 1
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_server_for_others_needs_a_token(adapter: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lorica.common.cli.command import app

    runner = CliRunner()
    for more in (["--host", "0.0.0.0"], ["--token-file", str(tmp_path / "absent")]):
        found = runner.invoke(app, ["serve", str(adapter), *more])
        assert isinstance(found.exception, LoricaError)
        assert found.exception.code is Code.SERVER_TOKEN
    (tmp_path / "short").write_text("short")
    found = runner.invoke(app, ["serve", str(adapter), "--token-file", str(tmp_path / "short")])
    assert isinstance(found.exception, LoricaError)
