"""The coordinator in secure aggregation: collects, fixes who survived, opens the sum."""
