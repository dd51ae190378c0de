"""Simulated sites on other machines: Ray's actors, and the nodes of Flower's own runtime."""
