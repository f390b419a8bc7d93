"""Reads: lists, sums, single values and walks, each on one snapshot."""
