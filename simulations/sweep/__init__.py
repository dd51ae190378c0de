"""Many simulations from one file."""
