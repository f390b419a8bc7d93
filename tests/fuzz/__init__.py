"""Generated requests against a running service: long, so apart from the other tests."""
