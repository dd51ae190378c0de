"""The round loop: ask, send, screen, aggregate, evaluate, save."""
