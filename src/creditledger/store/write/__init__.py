"""What one write transaction reads and writes, whatever the database."""
