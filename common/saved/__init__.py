"""A run's adapter as people use it: its folder, model card, predictions, merge."""
