"""`lorica coordinator …` and `lorica run …`."""
