"""Rules of releases: class sums, gradient steps."""
