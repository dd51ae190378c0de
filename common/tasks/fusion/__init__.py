"""The two tasks that read a table beside a text or an image."""
