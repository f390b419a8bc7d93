"""Receipts that older ledgers have credited more than once.

Functions of a connection on one snapshot.
"""

from typing import NamedTuple

from sqlalchemy import Connection

from creditledger.domain import ids


class RepeatedReceipt(NamedTuple):
    """A receipt that a wallet has credited more than once, unasked."""

    wallet_id: str
    provider: str
    receipt_id: str
    posting_ids: tuple[str, ...]  #: Of all that credited it, oldest first.


#: The grants of each receipt of which one was repeated without being allowed to.
_REPEATED = """
SELECT w.id, r.provider, r.receipt_id, r.wallet_number, t.posting_number
FROM (SELECT DISTINCT c.wallet_number, c.provider, c.receipt_id FROM receipts AS c
      JOIN credit_transactions AS u
        ON u.wallet_number = c.wallet_number AND u.sequence = c.grant_number
      JOIN postings AS p ON p.wallet_number = u.wallet_number AND p.number = u.posting_number
      WHERE c.copy <> 0 AND coalesce(p.terms, '') NOT LIKE '%"grant.allow_repeated_receipt":true%'
     ) AS o
JOIN receipts AS r ON r.wallet_number = o.wallet_number AND r.provider = o.provider
 AND r.receipt_id = o.receipt_id
JOIN credit_transactions AS t ON t.wallet_number = r.wallet_number AND t.sequence = r.grant_number
JOIN wallets AS w ON w.number = r.wallet_number
ORDER BY r.wallet_number, r.provider, r.receipt_id, r.grant_number"""


def repeated_receipts(connection: Connection) -> list[RepeatedReceipt]:
    """What was credited more than once before the ledger refused it, and is not voided since."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for *receipt, wallet, posting in connection.exec_driver_sql(_REPEATED):
        name = receipt[0], receipt[1], receipt[2]
        found.setdefault(name, []).append(ids.compose("pst", wallet, posting))
    return [RepeatedReceipt(*name, tuple(ids_)) for name, ids_ in found.items() if len(ids_) > 1]
