"""What any process of Lorica asks of its machine: files, locks, logs, disk, memory, supervision."""
