"""One module per page, the JSON API, and the doors for machines."""
