"""The write path: commands are gathered into batches, decided and committed."""
