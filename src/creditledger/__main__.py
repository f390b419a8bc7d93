"""Where the command `creditledger` begins, called so or as `python -m creditledger`."""

from creditledger.config import expect_forks

# `up` starts Envoy, and gRPC decides when it is imported what it thinks of that.
expect_forks()

from creditledger.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
