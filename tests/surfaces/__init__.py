"""Every published API, over gRPC and through the real Envoy."""
