"""What runs at the coordinator: the round loop, screening, aggregation."""
