"""Synthetic data sets, small models, and runs of every task."""
