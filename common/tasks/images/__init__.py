"""The task that reads images: pixels and their classes."""
