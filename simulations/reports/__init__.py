"""Tables, plots, picture, page."""
