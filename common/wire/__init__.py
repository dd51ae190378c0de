"""Everything that crosses the border: messages and their fields, signatures, rounding, invitations, the shipped bundle."""
