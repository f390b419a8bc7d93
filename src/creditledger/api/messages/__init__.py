"""Messages to values and back, a file for each kind of message."""
