"""Payment Kit's API of meters and grants."""
