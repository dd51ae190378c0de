"""A site in secure aggregation: masks its vector, and opens masks of sums alone."""
