"""Rules of local steps: one module per method, robust rules, server optimisers."""
