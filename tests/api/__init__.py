"""The edge: who may call, what is refused, how much at once."""
