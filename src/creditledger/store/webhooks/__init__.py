"""Webhook endpoints, what is made for them, and how far the ledger was read."""
