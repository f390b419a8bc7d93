"""The benchmark: `make bench`. A real server on real storage, driven by processes beside it."""
