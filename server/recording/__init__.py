"""A run told to the store and to trackers while it goes on, or taken in afterwards."""
