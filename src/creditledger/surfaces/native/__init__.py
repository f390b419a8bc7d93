"""The ledger's own services."""
