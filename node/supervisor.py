"""`meridian serve`: starts keeper, gateways and, in a cluster, a replicator; restarts what dies, reloads, drains.

It serves nothing itself, and imports neither gRPC nor anything of HTTP: the less it does, the less can end it, and
with it everything.

- SIGTERM, SIGINT: gateways stop accepting and finish what is under way, then the others end, then this process.
- SIGHUP: the file is read again. New gateways take over the same sockets; once they serve, the old ones drain. The
  keeper and the replicator are started anew only if something that they read has changed; gateways wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from consensus import clock, entropy
from node import config as configuration
from node import telemetry
from node.children import Kept, Program
from node.config import Config, ConfigError
from node.identity import IdentityRefused
from node.launch import METRICS_FOLDER, SUPERSEDED, Launch
from node.premises import Premises, PremisesRefused, address_of, occupied
from node.tls import TlsRefused, tls_of

MAX_DRAIN_SECONDS = 24.0  # with what follows: 30 s in all
DRAIN_MARGIN_SECONDS = 1.0
KEEPER_STOP_SECONDS = 4.0
RELOAD_SECONDS = 30.0

# gRPC's C core: no handlers for forks that never happen, and no lines on standard error that are not ours.
_QUIET = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"}
_FIXED = {
    "node": ("region", "name", "data", "runtime"),
    "listen": ("address", "admin", "peers", "transfers"),
    "cluster": ("id", "members", "ca", "certificate", "key"),
}
_KEEPERS = ("log", "telemetry")
_REPLICATORS = ("limits", "telemetry")

log = logging.getLogger(__name__)


def run(config: Config, config_path: Path | None) -> int:
    """Runs the node until SIGTERM; returns the exit status: 0, or 1 if it cannot start, which is logged."""
    telemetry.configure_logging("supervisor", config.telemetry)
    try:
        tls_of(config.listen)
        with occupied(config) as premises:
            variables = telemetry.prepare_metrics(premises.runtime / METRICS_FOLDER)
            environment = {**configuration.environment(), **variables, **_QUIET}
            asyncio.run(Supervisor(config, config_path, premises, environment).serve())
    except (PremisesRefused, IdentityRefused, ConfigError, TlsRefused, OSError) as error:
        log.error("node_refused", extra={"reason": str(error)})  # noqa: TRY400
        return 1
    return 0


class Supervisor:
    """The processes of one node."""

    def __init__(
        self, config: Config, config_path: Path | None, premises: Premises, environment: dict[str, str]
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._premises = premises
        self._environment = environment
        self._incarnation = entropy.token_bytes(16).hex()
        self._started_ms = clock.wall_ms()
        self._tasks = asyncio.TaskGroup()
        self._stopping = asyncio.Event()
        self._reload = asyncio.Event()
        self._gateways: list[Kept] = []
        self._replicator: Kept | None = None

    async def serve(self) -> None:
        """Until SIGTERM or SIGINT, and then until everything has ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        async with self._tasks:
            self._keeper = self._keep_keeper(self._config)
            self._gateways = self._keep_gateways(self._config)
            self._replicator = self._keep_replicator(self._config)
            beside = [self._replicator] if self._replicator else []
            announcing = self._tasks.create_task(self._announce([self._keeper, *beside, *self._gateways]))
            while await self._asked_to_reload():
                await self._reload_once()
            announcing.cancel()
            await self._drain()

    async def _announce(self, kept: Sequence[Kept]) -> None:
        await _ready(kept)
        addresses = {"registry": address_of(self._premises.registry), "admin": address_of(self._premises.admin)}
        if self._premises.transfers:
            addresses["transfers"] = address_of(self._premises.transfers)
        log.info("node_serving", extra=addresses)

    async def _asked_to_reload(self) -> bool:
        """Waits for SIGHUP (True) or the end (False)."""
        await _first(self._stopping.wait(), self._reload.wait())
        self._reload.clear()
        return not self._stopping.is_set()

    # Processes

    def _keep_keeper(self, config: Config) -> Kept:
        return self._keep("keeper", "keeper", partial(self._keeper_program, config), config)

    def _keep_replicator(self, config: Config) -> Kept | None:
        """None for a node that stands alone."""
        if not config.cluster.members:
            return None
        return self._keep("replicator", "replicator", partial(self._replicator_program, config), config)

    def _keep_gateways(self, config: Config) -> list[Kept]:
        count = config.node.gateways or len(os.sched_getaffinity(0))
        return [
            self._keep("gateway", f"gateway-{number}", partial(self._gateway_program, config, number), config)
            for number in range(count)
        ]

    def _keep(self, kind: str, name: str, make: partial[Program], config: Config) -> Kept:
        kept = Kept(kind, name, make, config.supervisor)
        self._tasks.create_task(kept.run(), name=name)
        return kept

    def _keeper_program(self, config: Config, ready: int) -> Program:
        launch = self._launch("keeper", config, ready)
        return Program("node.keeper", launch.name, launch.encode(), (ready,), self._environment)

    def _replicator_program(self, config: Config, ready: int) -> Program:
        launch = self._launch("replicator", config, ready)
        return Program("node.replicator", launch.name, launch.encode(), (ready,), self._environment)

    def _gateway_program(self, config: Config, number: int, ready: int) -> Program:
        registry, admin = self._premises.registry.fileno(), self._premises.admin.fileno()
        transfers = self._premises.transfers.fileno() if self._premises.transfers else -1
        launch = msgspec.structs.replace(
            self._launch(f"gateway-{number}", config, ready),
            number=number,
            registry_descriptor=registry,
            admin_descriptor=admin,
            transfers_descriptor=transfers,
        )
        inherited = tuple(each for each in (ready, registry, admin, transfers) if each >= 0)
        return Program("node.gateway", launch.name, launch.encode(), inherited, self._environment)

    def _launch(self, name: str, config: Config, ready: int) -> Launch:
        return Launch(
            name=name,
            config=config,
            runtime=str(self._premises.runtime),
            incarnation=self._incarnation,
            started_ms=self._started_ms,
            ready_descriptor=ready,
        )

    # Changes

    async def _drain(self) -> None:
        log.info("node_draining")
        for gateway in self._gateways:
            gateway.retire()
        self._premises.registry.close()
        self._premises.admin.close()
        if self._premises.transfers:
            self._premises.transfers.close()
        await self._stop_gateways(self._gateways)
        beside = [self._replicator] if self._replicator else []
        await asyncio.gather(*(each.stop(KEEPER_STOP_SECONDS) for each in (self._keeper, *beside)))
        log.info("node_stopped")

    async def _stop_gateways(self, gateways: Sequence[Kept], request: signal.Signals = signal.SIGTERM) -> None:
        seconds = min(self._config.supervisor.drain_seconds, MAX_DRAIN_SECONDS) + DRAIN_MARGIN_SECONDS
        await asyncio.gather(*(gateway.stop(seconds, request) for gateway in gateways))

    async def _reload_once(self) -> None:
        try:
            fresh = configuration.load(self._config_path, configuration.environment())
            tls_of(fresh.listen)
        except (ConfigError, TlsRefused) as error:
            log.error("reload_refused", extra={"reason": f"{error}; the old gateways go on"})  # noqa: TRY400
            return
        fresh, waiting = _pinned(fresh, self._config)
        if waiting:
            log.warning("reload_needs_restart", extra={"keys": ", ".join(waiting)})
        gateways = self._keep_gateways(fresh)
        if not await self._all_ready(gateways):
            log.error("reload_refused", extra={"reason": "the new gateways do not serve; the old ones go on"})
            await self._stop_gateways(gateways)
            return
        telemetry.configure_logging("supervisor", fresh.telemetry)
        old, self._gateways = self._gateways, gateways
        before, self._config = self._config, fresh
        self._tasks.create_task(self._stop_gateways(old, SUPERSEDED))
        if _differ(before, fresh, _KEEPERS):
            await self._keeper.stop(KEEPER_STOP_SECONDS)
            self._keeper = self._keep_keeper(fresh)
        if self._replicator and _differ(before, fresh, _REPLICATORS):
            await self._replicator.stop(KEEPER_STOP_SECONDS)
            self._replicator = self._keep_replicator(fresh)
        log.info("node_reloaded")

    async def _all_ready(self, kept: Sequence[Kept]) -> bool:
        """Whether all are ready in time; not if one dies before, or the node is to end."""
        try:
            async with asyncio.timeout(RELOAD_SECONDS):
                await _first(_ready(kept), self._stopping.wait(), *(each.died.wait() for each in kept))
        except TimeoutError:
            return False
        return all(each.ready.is_set() for each in kept)


def _differ(before: Config, fresh: Config, sections: Sequence[str]) -> bool:
    return any(getattr(before, section) != getattr(fresh, section) for section in sections)


async def _ready(kept: Sequence[Kept]) -> None:
    for each in kept:
        await each.ready.wait()


async def _first(*waits: Awaitable[object]) -> None:
    """Returns when one of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _pinned(fresh: Config, current: Config) -> tuple[Config, list[str]]:
    """The new configuration with what cannot change while the node runs as it was, and the names of those keys."""
    waiting = []
    for section, keys in _FIXED.items():
        new, old = getattr(fresh, section), getattr(current, section)
        changed = {key: getattr(old, key) for key in keys if getattr(old, key) != getattr(new, key)}
        waiting += [f"{section}.{key}" for key in changed]
        fresh = msgspec.structs.replace(fresh, **{section: msgspec.structs.replace(new, **changed)})
    return fresh, waiting
