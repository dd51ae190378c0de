"""Files of text as rows: how they are encoded, what divides their fields, where JSON has rows."""
