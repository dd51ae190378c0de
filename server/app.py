"""The Flower ServerApp of a Lorica run."""

from lorica.server.rounds.run import make_server_app

app = make_server_app()
