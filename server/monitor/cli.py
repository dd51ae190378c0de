"""``lorica monitor``: serve the operator's pages, and say who may enter it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.server.monitor.access.settings import Settings
    from lorica.server.store import RunStore

_COURTESY = 19  # of nice: a running round on the same machine comes first

app = typer.Typer(
    name="monitor",
    invoke_without_command=True,
    help="Watch runs, sites and alerts in a browser.",
    rich_help_panel="Coordinators",
)
users = typer.Typer(no_args_is_help=True, help="Who may sign in.")
keys = typer.Typer(no_args_is_help=True, help="Keys of programs that read the API and /metrics.")
app.add_typer(users, name="user")
app.add_typer(keys, name="token")

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", help="The run store's URL or file; else LORICA_STORE, else the home's."
    ),
]
NameArgument = Annotated[str, typer.Argument(help="Name of the account.")]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
_WHO = "command line"


@app.callback()
def serve(
    context: typer.Context,
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8600,
    public_url: Annotated[
        str, typer.Option(help="Address in people's browsers, behind a reverse proxy.")
    ] = "",
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate, PEM; needs --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of --certificate, PEM.")] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let anyone read /metrics without a token.")
    ] = False,
) -> None:
    """Serve the monitor until Ctrl-C.

    On this machine alone it needs no account: it prints a link that opens it. Anywhere else it
    refuses to start before there is one.
    """
    if context.invoked_subcommand is not None:
        return
    from lorica.server.monitor.access.settings import Settings, check

    opened = _open(store)
    bound = _bind(host, port)
    settings = Settings(
        host, bound.getsockname()[1], public_url, certificate, key, open_metrics=open_metrics
    )
    try:
        from lorica.server.monitor.access.accounts import Accounts

        accounts = Accounts(opened).any()
        check(settings, accounts=accounts)
        _serve(opened, settings, bound, accounts=accounts)
    finally:
        bound.close()
        opened.close()


@users.command("add")
def user_add(
    name: NameArgument,
    role: Annotated[
        str, typer.Option(help='"viewer" reads; "operator" also stops runs.')
    ] = "viewer",
    password_stdin: PasswordOption = False,
    store: StoreOption = None,
) -> None:
    """Make an account; the password is asked for."""
    from lorica.server.monitor.access.accounts import Accounts, checked_name

    accounts = Accounts(_open(store))
    person = accounts.add(name, role, _password(checked_name(name), password_stdin))
    _note(store, "account added", person.name, person.role)
    _say(f"{person.name} may sign in as {person.role}.")


@users.command("list")
def user_list(store: StoreOption = None) -> None:
    """List the accounts."""
    from lorica.server.monitor.access.accounts import Accounts
    from lorica.server.monitor.shown.formats import moment

    found = Accounts(_open(store)).all()
    if not found:
        _say("No accounts yet: lorica monitor user add NAME --role operator")
        return
    table = Table("account", "role", "made (UTC)", "last sign-in", box=None, header_style="bold")
    for person in found:
        table.add_row(person.name, person.role, moment(person.created), moment(person.last_login))
    Console().print(table)


@users.command("remove")
def user_remove(name: NameArgument, store: StoreOption = None) -> None:
    """Remove an account and sign it out everywhere."""
    from lorica.server.monitor.access.accounts import Accounts

    Accounts(_open(store)).remove(name)
    _note(store, "account removed", name)
    _say(f"{name} is removed and signed out.")


@users.command("password")
def user_password(
    name: NameArgument, password_stdin: PasswordOption = False, store: StoreOption = None
) -> None:
    """Set a new password and sign the account out everywhere."""
    from lorica.server.monitor.access.accounts import Accounts

    Accounts(_open(store)).set_password(name, _password(name, password_stdin))
    _note(store, "password changed", name)
    _say(f"{name} has a new password and is signed out everywhere.")


@keys.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="What it is for, such as prometheus.")],
    days: Annotated[float | None, typer.Option(help="How long it is valid; else for ever.")] = None,
    store: StoreOption = None,
) -> None:
    """Make a read-only token and print it, once, alone on standard output."""
    from lorica.server.monitor.access.tokens import Tokens

    secret = Tokens(_open(store)).add(name, days)
    _note(store, "token added", name, "" if days is None else f"for {days:g} days")
    sys.stdout.write(f"{secret}\n")
    _say("Keep it: only its hash is in the store, and it is not shown again.")


@keys.command("list")
def token_list(store: StoreOption = None) -> None:
    """List the tokens, without their secrets."""
    from lorica.server.monitor.access.tokens import Tokens
    from lorica.server.monitor.shown.formats import moment

    found = Tokens(_open(store)).all()
    if not found:
        _say("No tokens yet: lorica monitor token add NAME")
        return
    table = Table(
        "token", "begins", "made (UTC)", "last used", "valid to", box=None, header_style="bold"
    )
    for token in found:
        ends = moment(token.expires) if token.expires else "for ever"
        used = moment(token.last_used)
        table.add_row(token.name, f"{token.prefix}…", moment(token.created), used, ends)
    Console().print(table)


@keys.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")], store: StoreOption = None
) -> None:
    """End a token's validity."""
    from lorica.server.monitor.access.tokens import Tokens

    Tokens(_open(store)).revoke(name)
    _note(store, "token revoked", name)
    _say(f"The token {name} is valid no longer.")


def _serve(store: RunStore, settings: Settings, bound: socket.socket, *, accounts: bool) -> None:
    import uvicorn

    from lorica.server.monitor.app import create_app

    web = create_app(store, settings)
    if accounts:
        _say(f"The monitor is at {settings.url}; sign in with an account.")
    else:
        link = f"{settings.url}/open?key={web.state.shared.link_key}"
        _say(f"The monitor is at {settings.url}, for this machine alone. Open it by this link:")
        Console(stderr=True).print(f"  {link}", highlight=False, markup=False, soft_wrap=True)
    _say("Ctrl-C ends it. Runs go on without it.")
    config = uvicorn.Config(
        web,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1,::1",
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        timeout_graceful_shutdown=3,
        limit_concurrency=1000,
    )
    with contextlib.suppress(OSError):
        os.nice(_COURTESY)
    server = uvicorn.Server(config)
    server.run(sockets=[bound])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # whoever follows the link at once waits instead of being refused
    except OSError as error:
        raise LoricaError(
            Code.MONITOR_PORT, f"{host}:{port} cannot be listened at: {error.strerror}."
        ) from error
    return bound


def _open(store: str | None) -> RunStore:
    try:
        from lorica.server.store import RunStore
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"The monitor needs the package {error.name}.",
            mend="pip install 'lorica[server]'",
        ) from error
    return RunStore.open(store)


def _note(store: str | None, action: str, subject: str, detail: str = "") -> None:
    import getpass

    from lorica.server.monitor.access.log import AuditLog

    try:
        who = f"{getpass.getuser()} ({_WHO})"
    except (KeyError, OSError):  # a user id without a name
        who = _WHO
    AuditLog(_open(store)).add(who, action, subject, detail=detail)


def _password(name: str, from_stdin: bool) -> str:
    from lorica.server.monitor.access.accounts import check_password

    if from_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    check_password(name, password)
    return str(password)


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
