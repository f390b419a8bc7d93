"""What every database must do: the same tests pass on SQLite and on PostgreSQL.

What is one database's own, and how it does a thing, is tested beside this folder.
"""
