"""``lorica audit``: how much does training really leak? Lower bounds on ε, measured."""
