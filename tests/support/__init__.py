"""What tests share: servers, databases, clients, and the naive model."""
