"""Secure aggregation: arithmetic, keys and messages that sites and coordinator share."""
