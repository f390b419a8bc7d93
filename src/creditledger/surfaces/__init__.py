"""The APIs as clients see them: one package for each published API."""
