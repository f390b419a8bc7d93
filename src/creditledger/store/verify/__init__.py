"""The checks of the ledger: invariants as queries that must find nothing."""
