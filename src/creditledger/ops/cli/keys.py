"""`creditledger keys`: API keys, through the ledger like everything that writes."""

from collections.abc import AsyncIterator

from credit.v1 import api_key_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

from creditledger.ops.config import Config
from creditledger.ops.server import local_channel

PAGE_SIZE = 100


async def create(config: Config, request: pb.CreateApiKeyRequest) -> pb.CreateApiKeyResponse:
    """A new key with its secret."""
    async with local_channel(config) as channel:
        return await ApiKeyServiceStub(channel).CreateApiKey(request)


async def listed(config: Config, request: pb.ListApiKeysRequest) -> list[pb.ApiKey]:
    """All keys that the request's filters leave, whatever its page."""
    async with local_channel(config) as channel:
        return [key async for key in _pages(ApiKeyServiceStub(channel), request)]


async def revoke(config: Config, key_id: str) -> pb.ApiKey:
    """The key, revoked."""
    async with local_channel(config) as channel:
        return await ApiKeyServiceStub(channel).RevokeApiKey(pb.RevokeApiKeyRequest(id=key_id))


async def _pages(
    keys: ApiKeyServiceStub, request: pb.ListApiKeysRequest
) -> AsyncIterator[pb.ApiKey]:
    request.page_size = PAGE_SIZE
    while True:
        page = await keys.ListApiKeys(request)
        for key in page.api_keys:
            yield key
        if not page.HasField("next_page_token"):
            return
        request.page_token = page.next_page_token
