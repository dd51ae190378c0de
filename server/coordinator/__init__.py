"""A coordinator on a machine of its own: set-up, sites, services, runs."""
