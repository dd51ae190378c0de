"""The API's own page: made from its OpenAPI description, without a script from elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from lorica.server.monitor.request.callers import Person, Reader
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.request.templating import page

router = APIRouter(include_in_schema=False)


@router.get("/api/v1/openapi.json")
def openapi(request: Request, caller: Reader) -> JSONResponse:
    """The description of the API."""
    return JSONResponse(request.app.openapi())


@router.get("/api/docs")
def docs(request: Request, caller: Person) -> HTMLResponse:
    """Every address of the API with its parameters and what it answers."""
    found = request.app.openapi()
    schemas = found.get("components", {}).get("schemas", {})
    return page(
        request,
        "api",
        caller,
        here="api",
        operations=[
            {
                "path": path,
                "summary": details["get"].get("summary", ""),
                "description": details["get"].get("description", ""),
                "parameters": details["get"].get("parameters", []),
                "answer": _answer(details["get"]),
            }
            for path, details in found["paths"].items()
            if "get" in details
        ],
        schemas={
            name: [
                {
                    "name": field,
                    "type": _type(content),
                    "description": content.get("description", ""),
                }
                for field, content in schema.get("properties", {}).items()
            ]
            for name, schema in schemas.items()
            if schema.get("properties") and not name.startswith(("HTTP", "Validation"))
        },
        url=shared_of(request).settings.url,
    )


def _answer(operation: dict[str, Any]) -> str:
    content = operation["responses"].get("200", {}).get("content", {})
    for kind, found in content.items():
        return _type(found["schema"]) if found.get("schema") else str(kind)
    return ""


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
