"""Everything that crosses the border: messages, signatures, rounding, invitations, the bundle."""
