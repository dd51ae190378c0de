"""The Flower ClientApp of a Lorica site."""

from lorica.client.answering.endpoint import installed_trainer, make_client_app

app = make_client_app(installed_trainer)
