"""A ledger for people: figures, terminal, page, export."""
