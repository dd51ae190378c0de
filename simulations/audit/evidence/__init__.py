"""What so many right guesses prove."""
