"""What every request works with: what they share, the caller, the guard, templates."""
