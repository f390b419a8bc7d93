"""What statements are added up from, and those that are closed."""
