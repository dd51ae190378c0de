"""Words, units and pages, as every view shows them."""
