"""The operator's view: one web application over the run store."""
