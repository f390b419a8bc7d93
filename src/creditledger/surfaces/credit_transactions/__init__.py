"""The published credit-transaction API."""
