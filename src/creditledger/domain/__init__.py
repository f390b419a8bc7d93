"""The rules and the values of the ledger: pure, no I/O, no clock, no SQL, no names of an API."""
