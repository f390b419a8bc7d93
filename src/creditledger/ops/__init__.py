"""Running it: the server, its processes, its settings and its command line."""
