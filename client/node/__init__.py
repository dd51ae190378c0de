"""The process that has the network and no records, and its way to the trainer."""
