"""The promises of creditledger, one file each."""

from creditledger.ops.config import prepare_grpc

# Tests start other programs beside servers of their own process, which would fork with gRPC inside.
prepare_grpc()
