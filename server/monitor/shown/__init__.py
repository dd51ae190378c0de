"""What is shown and how it is written."""
