"""What leaves the ledger: exports, statements, webhooks, watches, and what expires by itself."""
