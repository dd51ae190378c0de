"""The Flower ServerApp of a Lorica run."""

from lorica.server.serverapp import make_server_app

app = make_server_app()
