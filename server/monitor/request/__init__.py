"""What every request works with: the room, the caller, the guard, templates."""
