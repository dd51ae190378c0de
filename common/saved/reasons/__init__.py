"""Why an adapter answers as it does: what in a text, an image or a table spoke for the answer."""
