"""What sites and coordinator must agree on. Imports nothing of the other packages."""
