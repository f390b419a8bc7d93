"""The published billing APIs."""
