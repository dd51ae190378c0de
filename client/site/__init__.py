"""The machine as a whole: what a run would cost, checks, supervised services."""
