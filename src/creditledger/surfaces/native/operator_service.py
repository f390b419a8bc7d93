"""OperatorService: the whole ledger, as operators look at it."""

import asyncio
import re
from collections.abc import Callable
from functools import partial

from credit.v1 import operator_service_pb2 as pb
from credit.v1 import operator_service_pb2_grpc

from creditledger.api import fields
from creditledger.api.auth import Caller, Callers
from creditledger.api.rpc import Service, rpc
from creditledger.domain import clock as time
from creditledger.domain import money
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import Category
from creditledger.domain.reconciliation import CannotReconcile
from creditledger.domain.registry import Scope
from creditledger.outlets.reconcile import Reconciler
from creditledger.store import Store, last_verification
from creditledger.store.last_verification import VerificationOutcome
from creditledger.store.whole_ledger import LedgerOverview, Mode, overview
from creditledger.surfaces.native import reconciliations
from creditledger.surfaces.native.reconciliations import ReconcileAsked
from creditledger.telemetry.measures import Measures

#: A server reads the figures anew when they are older than this.
OVERVIEW_MS_MAX = time.MINUTE
#: The read takes longer with more wallets; it is one a minute at most.
OVERVIEW_SECONDS_MAX = 30.0
#: Checks that a verification may name.
CHECKS_MAX = 100

_CHECK = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


def _mode(request: pb.OverviewRequest) -> bool | None:
    return fields.livemode(request)


def _failed_checks(request: pb.RecordVerificationRequest) -> tuple[str, ...]:
    names = tuple(request.failed_checks)
    if len(names) > CHECKS_MAX or not all(map(_CHECK.fullmatch, names)):
        raise InvalidField(
            f"failed_checks must be up to {CHECKS_MAX} names of checks", param="failed_checks"
        )
    return names


class OperatorService(Service, operator_service_pb2_grpc.OperatorServiceServicer):
    """Served to operators over gRPC and, through Envoy, over REST."""

    def __init__(
        self, *, store: Store, callers: Callers, measures: Measures, clock: Callable[[], int]
    ) -> None:
        super().__init__(store=store, callers=callers, clock=clock)
        self._measures = measures
        self._reconciler = Reconciler(store)
        self._started_at = clock()
        self._last: LedgerOverview | None = None
        self._reading: asyncio.Task[LedgerOverview] | None = None

    @rpc(_mode, scope=Scope.SERVICE)
    async def Overview(  # noqa: N802
        self, livemode: bool | None, caller: Caller
    ) -> pb.OverviewResponse:
        """The figures of at most a minute ago, of the caller's mode. Raises ModeMismatch."""
        wanted = caller.mode(livemode)
        found = await self._figures()
        whole, webhooks = found.whole, found.webhooks.get(wanted)
        return pb.OverviewResponse(
            livemode=wanted,
            as_of=time.text(whole.at),
            currencies=[
                _of_currency(found, mode) for mode in sorted(whole.wallets) if mode[1] is wanted
            ],
            customers=found.customers,
            refusals_since_start=[
                pb.RefusalCount(reason=reason, calls=calls, postings=postings)
                for reason, (calls, postings) in self._measures.refusals().items()
            ],
            server_started_at=time.text(self._started_at),
            webhooks=pb.WebhookBacklog(
                due=0 if webhooks is None else webhooks.due,
                oldest_at=None if webhooks is None else time.text(webhooks.oldest_at),
            ),
            last_verification=found.whole.verification and _verification(found.whole.verification),
        )

    @rpc(_failed_checks, scope=Scope.ADMIN, shared=True)
    async def RecordVerification(  # noqa: N802
        self, failed_checks: tuple[str, ...], caller: Caller
    ) -> pb.LastVerification:
        """What was written down. Raises ModeMismatch."""
        ended = VerificationOutcome(self._clock(), failed_checks)
        await self._store.write(lambda connection: last_verification.write(connection, ended))
        self._last = None
        return _verification(ended)

    @rpc(reconciliations.asked, scope=Scope.SERVICE)
    async def Reconcile(  # noqa: N802
        self, asked: ReconcileAsked, caller: Caller
    ) -> pb.ReconcileResponse:
        """Raises InvalidField where nothing can be compared, ModeMismatch, Overloaded."""
        livemode = caller.mode(asked.livemode)
        try:
            report = await self._reconciler.reconcile(asked.job, livemode=livemode)
        except CannotReconcile as error:
            raise reconciliations.refusal(error) from None
        return reconciliations.answered(report, livemode=livemode)

    async def _figures(self) -> LedgerOverview:
        """The last figures, or new ones; calls at the same time share one read."""
        now = self._clock()
        if self._last is not None and 0 <= now - self._last.whole.at < OVERVIEW_MS_MAX:
            return self._last
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(now))
        # Shielded: a caller who goes away does not end the read that others wait for.
        return await asyncio.shield(self._reading)

    async def _read(self, now: int) -> LedgerOverview:
        self._last = await self._store.read(
            partial(overview, now=now), seconds=OVERVIEW_SECONDS_MAX, stale=True
        )
        return self._last


def _of_currency(found: LedgerOverview, mode: Mode) -> pb.CurrencyOverview:
    whole, (currency, livemode) = found.whole, mode
    scale = whole.scales[currency]
    came, went = found.moved.get(mode, (0, 0))
    kinds = [(currency, livemode, category.word) for category in Category]
    liability, expiring = whole.liability, whole.expiring
    return pb.CurrencyOverview(
        currency_id=currency,
        wallets=whole.wallets[mode],
        liability=money.text(sum(liability[kind] for kind in kinds), scale),
        by_category=[
            pb.CategoryLiability(
                category=kind[2],
                liability=money.text(liability[kind], scale),
                expiring=money.text(expiring[kind], scale),
            )
            for kind in kinds
        ],
        expiring=money.text(sum(expiring[kind] for kind in kinds), scale),
        in_today=money.text(came, scale),
        out_today=money.text(-went, scale),
        open_holds=whole.holds[mode],
        held=money.text(whole.held[mode], scale),
        overdraft=money.text(whole.overdraft[mode], scale),
    )


def _verification(one: VerificationOutcome) -> pb.LastVerification:
    return pb.LastVerification(
        finished_at=time.text(one.finished_at), failed_checks=one.failed_checks
    )
