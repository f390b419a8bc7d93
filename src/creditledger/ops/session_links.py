"""Links that open a session of the console, once and within a minute.

The code stands behind the `#`: a browser sends that part of an address to nobody.
"""

import grpc
from credit.v1 import api_key_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub


async def session_link(
    channel: grpc.aio.Channel, base: str, request: pb.CreateSessionCodeRequest
) -> tuple[str, str]:
    """A link to the console under a base URL, and until when it is good."""
    made = await ApiKeyServiceStub(channel).CreateSessionCode(request)
    return f"{base}/console/#code={made.code}", made.expires_at
