"""The promises of creditledger, one file each."""
