"""The edge that all surfaces share: it knows gRPC and the generated messages.

`fields.py` checks values. `messages/` turns messages into values and back. `auth.py` identifies the
caller and its rights. `rpc.py` puts an RPC together from these.
"""
