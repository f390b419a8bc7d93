"""A ledger of prepaid credit as a gRPC microservice."""

__version__ = "0.1.0"
