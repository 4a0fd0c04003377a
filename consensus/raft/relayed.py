"""Handlers of a gRPC server that are not made yet when the server is."""

from __future__ import annotations

from typing import Any

import grpc


class RelayedHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # gRPC does not let it be subscripted
    """To be given to a transport, whose log has to exist before what else the port serves."""

    def __init__(self) -> None:
        self._handlers: tuple[grpc.GenericRpcHandler[Any, Any], ...] = ()

    def add(self, handler: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Answered from now on."""
        self._handlers += (handler,)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.GenericRpcHandler."""
        for handler in self._handlers:
            if (found := handler.service(handler_call_details)) is not None:
                return found
        return None
