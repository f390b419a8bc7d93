"""A made-up ledger of any size, to see what size does."""
