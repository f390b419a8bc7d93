"""SQLite: its connections, its writer and its statements."""
