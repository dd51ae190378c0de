"""The task that labels the tokens of a text: entities."""
