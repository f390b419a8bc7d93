"""What is registered: customers, meters, subscriptions, currencies, wallets and API keys."""
