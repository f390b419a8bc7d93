"""The clients against the real server behind the real proxy."""
