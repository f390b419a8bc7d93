"""Webhooks: deliveries made, and sent."""
