"""The database under the ledger: what both databases promise, alike."""
