"""What the larger commands do; `creditledger.cli` says how they are called."""
