"""What a posting can do: one file for each operation, and all of them by their code."""

from creditledger.domain.commands import Operation
from creditledger.domain.operations.adjust import Adjust
from creditledger.domain.operations.consume import Consume
from creditledger.domain.operations.grant import GiveGrant
from creditledger.domain.operations.hold import Capture, Extend, OnHold, PlaceHold, Release
from creditledger.domain.operations.meter_event import CancelEvent, ReportEvent
from creditledger.domain.operations.refund import Refund
from creditledger.domain.operations.transfer import Transfer
from creditledger.domain.operations.void import VoidGrant

__all__ = [
    "OPERATIONS",
    "Adjust",
    "CancelEvent",
    "Capture",
    "Consume",
    "Extend",
    "GiveGrant",
    "OnHold",
    "Operation",
    "PlaceHold",
    "Refund",
    "Release",
    "ReportEvent",
    "Transfer",
    "VoidGrant",
]

OPERATIONS: dict[int, type[Operation]] = {
    one.code: one
    for one in (
        *(GiveGrant, Consume, Adjust, Refund, VoidGrant, Transfer),
        *(PlaceHold, Capture, Release, Extend, ReportEvent, CancelEvent),
    )
}
