"""One module per task: model, collation, loss, metrics."""
