"""What leaves the ledger: exports, statements, watches, webhooks, expiries."""
