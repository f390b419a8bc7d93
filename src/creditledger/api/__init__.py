"""The wire: the only package that knows gRPC and the generated messages.

`fields.py` checks values, `api/messages/posting.py` turns messages into values and back, `auth.py`
says who calls and what they may, `rpc.py` puts an RPC together from these, and a file each holds
the services.
"""
