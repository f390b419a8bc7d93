"""How a server finds the method of a call."""

from typing import Any

import grpc


class Methods(grpc.GenericRpcHandler):
    """All methods of a server, by name; generated code adds them as to a server.

    A server of grpcio has a task for each method that it knows by registration, and looks at all of
    these tasks at each call: a hundred methods cost more than the rest of an empty call.
    """

    def __init__(self) -> None:
        self._methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Nothing: generated code adds everything twice, for servers that know one way."""

    def add_registered_method_handlers(
        self, service: str, handlers: "dict[str, grpc.RpcMethodHandler[Any, Any]]"
    ) -> None:
        """A service's methods."""
        self._methods |= {f"/{service}/{name}": one for name, one in handlers.items()}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The method of a call; None: there is none of that name."""
        return self._methods.get(handler_call_details.method)
