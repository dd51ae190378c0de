"""What any process of Lorica asks of its machine: whole files, locks, logs, disk, memory, supervision."""
