"""The promises of creditledger, one file each."""

from creditledger.config import expect_forks

# Tests start other programs beside servers of their own process, which would fork with gRPC inside.
expect_forks()
