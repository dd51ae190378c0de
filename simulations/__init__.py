"""Many virtual sites on one machine."""
