"""Who may enter: accounts, sessions, tokens, the log of it."""
