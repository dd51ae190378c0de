"""The process that has the network and no records: approved code, Flower's programs, the way to the trainer."""
