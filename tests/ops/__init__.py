"""Running it: processes, crashes, the command line, the documents."""
