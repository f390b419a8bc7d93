"""Sums over time: what each row adds to them, and how rows are folded into them."""
