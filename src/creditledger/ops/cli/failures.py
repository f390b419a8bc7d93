"""What a command that fails says."""

import grpc

from creditledger.domain.reconciliation import CannotReconcile
from creditledger.ops.cli.console import REFUSED, USAGE
from creditledger.ops.database import CannotBackUp
from creditledger.ops.export_file import CannotExport, WrongOption
from creditledger.ops.import_usage import CannotImport
from creditledger.store import DatabaseLocked


def sentence_of(error: Exception) -> tuple[str, int] | None:
    """One sentence for the operator and the exit code; None for a fault of the program."""
    match error:
        case CannotImport() | CannotReconcile() | WrongOption():
            return str(error), USAGE
        case CannotExport() | CannotBackUp():
            return str(error), REFUSED
        case DatabaseLocked():
            return f"{error}; stop it first.", REFUSED
        case grpc.aio.AioRpcError():
            gone = error.code() is grpc.StatusCode.UNAVAILABLE
            wrong = error.code() is grpc.StatusCode.INVALID_ARGUMENT
            said = error.details() or error.code().name
            return f"{'The server went away: ' if gone else ''}{said}", USAGE if wrong else REFUSED
        case _:
            return None
