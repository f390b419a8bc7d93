"""Exports: the files, and the stream that carries them."""
