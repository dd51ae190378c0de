"""Site.toml, and nothing that acts on it."""
