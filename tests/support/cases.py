"""Cases that leave nothing behind share what the test is given: a server, a database."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    Test = Callable[..., Awaitable[None]]


def in_turn(names: str, cases: Iterable[Any]) -> Callable[[Test], Test]:
    """One test of all cases, one after the other; a failure says in which case.

    Written as `pytest.mark.parametrize` is. A case finds what the ones before it have left.
    """
    parameters = [name.strip() for name in names.split(",")]
    listed = [case if len(parameters) > 1 else (case,) for case in cases]

    def decorate(test: Test) -> Test:
        async def all_cases(**given: Any) -> None:
            assert listed
            for case in listed:
                values = dict(zip(parameters, case, strict=True))
                try:
                    await test(**given, **values)
                except BaseException as failure:
                    failure.add_note(f"in the case {values}")
                    raise

        signature = inspect.signature(test)
        kept = [one for name, one in signature.parameters.items() if name not in parameters]
        all_cases.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined] # pytest reads it
        all_cases.__doc__ = test.__doc__
        all_cases.__name__, all_cases.__module__ = test.__name__, test.__module__
        return all_cases

    return decorate
