"""An adapter behind HTTP: batches, limits, health, metrics."""
