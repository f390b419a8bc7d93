"""`creditledger secrets`: what seals webhook secrets in the database."""

import typer

from creditledger.ops.cli.console import AsJson, print_json, say, with_settings
from creditledger.ops.config import Config, WrongSetting, spelled

commands = typer.Typer(no_args_is_help=True, help="Seal webhook secrets in the database.")


@commands.command("rotate")
@with_settings("database_url", "secrets_key_file")
def rotate(config: Config, as_json: AsJson = False) -> None:
    """Seal all webhook secrets by the first key of the key file, whatever sealed them before.

    Works while the server runs, by the file that the server was started with, and while it does
    not. What the first key has sealed already stays as it is.
    """
    from credit.v1 import webhook_service_pb2 as pb
    from credit.v1.webhook_service_pb2_grpc import WebhookServiceStub

    from creditledger.ops.client import call

    if config.secrets_key_file is None:
        raise WrongSetting(f"{spelled('secrets_key_file')} must be set: its first key seals.")
    request = pb.SealWebhookSecretsRequest()
    done = call(config, lambda channel: WebhookServiceStub(channel).SealWebhookSecrets(request))
    if as_json:
        print_json({"sealed": done.sealed})
    else:
        say(f"{done.sealed} secrets sealed anew")
