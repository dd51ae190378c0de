"""``lorica serve``: an adapter behind HTTP."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import AdapterArgument, BackboneOption, Numbers, PrecisionOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError

TOKEN_VARIABLE = "LORICA_SERVE_TOKEN"
_SHORTEST = 16
_MOST_HANDS = 4


def serve(
    adapter: AdapterArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the token that callers must send; else {TOKEN_VARIABLE}. Without one "
            "the server listens on this machine alone."
        ),
    ] = None,
    body_bytes: Annotated[int, typer.Option(min=1, help="Largest body of a request.")] = 1 << 20,
    texts: Annotated[int, typer.Option(min=1, help="Most texts of a request.")] = 256,
    waiting: Annotated[int, typer.Option(min=1, help="Most texts that wait.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Most texts of one batch.")] = 32,
    gather: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Milliseconds a text waits for others to share a batch."
        ),
    ] = 20,
    hands: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            help="Batches that are answered at a time, each by its share of the cores; 0: one for "
            f"each core, up to {_MOST_HANDS}.",
        ),
    ] = 0,
    precision: PrecisionOption = Numbers.AUTO,
    backbone: BackboneOption = "",
) -> None:
    """Answer texts over HTTP: POST /v1/predict, /health, /metrics, OpenAPI at /docs.

    Put a reverse proxy with TLS before it where callers are on other machines.
    """
    token = _token(token_file)
    if not token and not _is_loopback(host):
        raise LoricaError(
            Code.SERVER_TOKEN,
            f"The server would listen on {host} and answer anybody.",
            mend=f"Give --token-file or {TOKEN_VARIABLE}, or listen on 127.0.0.1.",
        )
    import socket

    import torch
    import uvicorn

    from lorica.common.saved.predict import Predictor
    from lorica.common.saved.serving.app import make_app
    from lorica.common.saved.serving.bounds import Limits

    hands = hands or min(_MOST_HANDS, torch.get_num_threads())
    limits = Limits(body_bytes, texts, waiting, batch, gather / 1000, hands)
    app = make_app(Predictor(adapter, backbone, precision.value), token=token, limits=limits)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)  # who comes before the server is ready waits
    except OSError as error:
        listening.close()
        raise LoricaError(
            Code.PORT_TAKEN, f"{host}:{port} cannot be listened on: {error.strerror}."
        ) from None
    shown = f"[{host}]" if ":" in host else host
    Console().print(
        Text(f"Serving {adapter} on http://{shown}:{listening.getsockname()[1]}"), soft_wrap=True
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _token(file: Path | None) -> str:
    try:
        given = os.environ.get(TOKEN_VARIABLE, "") if file is None else file.read_text()
    except OSError as error:
        raise LoricaError(
            Code.SERVER_TOKEN, f"The token's file {file} cannot be read: {error.strerror}."
        ) from None
    token = given.strip()
    if (file is not None or token) and (len(token) < _SHORTEST or not token.isascii()):
        raise LoricaError(
            Code.SERVER_TOKEN,
            f"The token has {len(token)} characters; it needs at least {_SHORTEST}, all ASCII.",
            mend="Make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
