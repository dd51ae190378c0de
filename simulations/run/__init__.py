"""One simulation: sites, engines, workers, progress, summary."""
