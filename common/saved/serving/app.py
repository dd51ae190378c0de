"""The HTTP application: POST /v1/predict, GET /health, GET /metrics, and OpenAPI at /docs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.predict import Predictor
from lorica.common.saved.serving.batches import Batches
from lorica.common.saved.serving.bounds import (
    Bounded,
    Guarded,
    Limits,
    Measured,
    error_content,
)
from lorica.common.version import __version__

_LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STATUS = {Code.SERVER_BUSY: 503, Code.SERVER_TOKEN: 401}


class Asked(BaseModel):
    """What to predict for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str] = Field(min_length=1, description="Texts to read, each with some letters.")
    table: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Column -> one cell for each text, of adapters that read a table.",
    )


class Predicted(BaseModel):
    """One prediction for each text, in their order; what is in it depends on the task."""

    predictions: list[dict[str, Any]]


class Health(BaseModel):
    """The service is up, and what it serves."""

    status: str
    version: str
    task: str
    labels: list[str]
    precision: str


def make_app(predictor: Predictor, *, token: str = "", limits: Limits | None = None) -> FastAPI:
    """The application of one adapter.

    Args:
        predictor: the adapter on its backbone.
        token: what callers must send as "Authorization: Bearer …"; empty: nothing.
        limits: bounds of requests; the defaults when left out.

    Raises:
        LoricaError: LOR-841 the adapter reads images, which come by no text.
    """
    bounds = limits or Limits()
    if predictor.reads_images:
        raise LoricaError(
            Code.SERVER_REQUEST,
            "The adapter reads images, and the server takes texts.",
            mend="Use `lorica predict --file` on a folder of images.",
        )
    batches = Batches(
        lambda texts, table: predictor(texts, table),
        most_texts=bounds.batch,
        most_waiting=bounds.waiting,
        gather=bounds.gather_seconds,
        hands=bounds.hands,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batches.start()
        yield
        await batches.close()

    app = FastAPI(
        title="Lorica",
        version=__version__,
        description="Predictions of one adapter.",
        lifespan=lifespan,
    )
    registry = CollectorRegistry()
    requests = Counter("lorica_serve_requests", "Requests.", ["status"], registry=registry)
    texts = Counter("lorica_serve_texts", "Texts answered.", registry=registry)
    seconds = Histogram(
        "lorica_serve_seconds", "From request to answer.", buckets=_LATENCIES, registry=registry
    )
    sizes = Histogram(
        "lorica_serve_batch_texts", "Texts of a batch.", buckets=_SIZES, registry=registry
    )
    waiting = Gauge("lorica_serve_waiting_texts", "Texts that wait.", registry=registry)

    def note(status: int, took: float) -> None:
        seconds.observe(took)
        requests.labels(str(status)).inc()

    app.add_middleware(Measured, path="/v1/predict", note=note)
    app.add_middleware(Bounded, most=bounds.body_bytes)
    app.add_middleware(Guarded, token=token)

    @app.post("/v1/predict", response_model=Predicted)
    async def predict(asked: Asked) -> Response:
        """Predictions for texts."""
        if len(asked.texts) > bounds.texts:
            raise LoricaError(
                Code.SERVER_REQUEST,
                f"The request has {len(asked.texts)} texts, and at most {bounds.texts} go at once.",
            )
        for name, cells in asked.table.items():
            if len(cells) != len(asked.texts):
                raise LoricaError(
                    Code.SERVER_REQUEST,
                    f"Column '{name}' has {len(cells)} cells for {len(asked.texts)} texts.",
                )
        found = await batches.ask(asked.texts, asked.table)
        texts.inc(len(found))
        # Not by the response's model: that is walked through twice, for each number of each label.
        return JSONResponse({"predictions": [prediction.content() for prediction in found]})

    @app.get("/health")
    async def health() -> Health:
        """Whether the service is up."""
        plan = predictor.plan
        return Health(
            status="ok",
            version=__version__,
            task=plan.task.kind,
            labels=plan.task.labels,
            precision=predictor.numbers,
        )

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        while batches.sizes:
            sizes.observe(batches.sizes.pop())
        waiting.set(batches.waiting)
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.exception_handler(LoricaError)
    async def coded(_: Request, error: LoricaError) -> JSONResponse:
        status = _STATUS.get(error.code, 422)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse(error_content(error), status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        sentence = f"{place or 'The body'}: {first['msg']}."
        return JSONResponse(error_content(LoricaError(Code.SERVER_REQUEST, sentence)), 422)

    return app
