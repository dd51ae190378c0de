"""The real site with canaries in it."""
