"""Where the command `creditledger` begins, called so or as `python -m creditledger`."""

from creditledger.ops.config import prepare_grpc

# `up` starts Envoy, and gRPC decides when it is imported what it thinks of that.
prepare_grpc()

from creditledger.ops.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main()
