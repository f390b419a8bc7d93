"""Rules and values by themselves: no server, no database, no process."""
