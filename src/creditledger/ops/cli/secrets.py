"""`creditledger secrets`: what seals webhook secrets in the database."""

from credit.v1 import webhook_service_pb2 as pb
from credit.v1.webhook_service_pb2_grpc import WebhookServiceStub

from creditledger.ops.config import Config, WrongSetting, spelled
from creditledger.ops.server import local_channel


async def rotate(config: Config) -> int:
    """Seal all webhook secrets by the first key of the server's file; how many that were.

    Raises WrongSetting where no file is set.
    """
    if config.secrets_key_file is None:
        raise WrongSetting(f"{spelled('secrets_key_file')} must be set: its first key seals.")
    async with local_channel(config) as channel:
        answer = await WebhookServiceStub(channel).SealWebhookSecrets(
            pb.SealWebhookSecretsRequest()
        )
    return answer.sealed
