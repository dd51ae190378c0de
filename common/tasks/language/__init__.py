"""The two tasks in which a model tells tokens."""
