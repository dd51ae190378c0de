"""The operator's room: one web application over the run store."""
