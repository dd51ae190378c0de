"""One answer: check, charge, run, store; and the site opened from site.toml."""
