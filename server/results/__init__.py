"""What a run leaves: records of rounds, the folder, who hears of it."""
