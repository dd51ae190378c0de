"""The process that has the records and no network."""
