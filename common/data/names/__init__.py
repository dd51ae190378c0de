"""Cells that name something: ids, labels, sites. One form for one value, and what only looks alike."""
