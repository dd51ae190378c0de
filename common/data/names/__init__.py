"""Cells that name something (ids, labels, sites): one form for one value, and what looks alike."""
