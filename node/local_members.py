"""Who belongs to the cluster on this machine: settled at its first start, and fixed from then on.

`$MERIDIAN_DATA/cluster.json` names the regions and the cluster's id, ca.crt and ca.key beside it are its authority. A
region gets a certificate at its first start, in `<region>/tls/`; its processes read nothing outside of `<region>/`.

One region alone is no cluster: it has neither id nor authority. So is, for good, a first region that began alone:
what it holds is in no log that others could join.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from consensus import smallfile
from node.local import Cluster, LocalError, LocalRegion

CERTIFICATE_DAYS = 3650
TLS_FOLDER = "tls"

_RECORD = "cluster.json"


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    regions: tuple[str, ...]
    id: str  # "": one region alone


@dataclass(frozen=True, slots=True)
class Members:
    """The regions that are started, and the id of their cluster, "" where there is one alone."""

    cluster: Cluster
    regions: tuple[LocalRegion, ...]
    cluster_id: str

    @classmethod
    def of(cls, cluster: Cluster) -> Members:
        """Those of the data folder; in a new one those of REGIONS become it. Raises LocalError, OSError."""
        if stands_alone(cluster):
            return cls(cluster, cluster.regions[:1], "")
        record = _read(cluster.data) or _found(cluster)
        names = tuple(region.name for region in cluster.regions)
        if record.regions != names:
            raise LocalError(
                f"REGIONS is {','.join(names)}, but {cluster.data} holds the cluster of {','.join(record.regions)}, "
                f"whose members are fixed: set REGIONS={','.join(record.regions)}, or another MERIDIAN_DATA"
            )
        return cls(cluster, cluster.regions, record.id)

    def region(self, name: str) -> LocalRegion:
        """Raises LocalError for one that is not started."""
        chosen = self.cluster.region(name)
        if chosen not in self.regions:
            raise LocalError(f"region {name}: {self.advice}")
        return chosen

    @property
    def left_out(self) -> tuple[LocalRegion, ...]:
        """What REGIONS names and is not started."""
        return self.cluster.regions[len(self.regions) :]

    @property
    def advice(self) -> str:
        """What to do about those that are left out."""
        return (
            f"not started: {self.regions[0].folder.path} began alone, and goes on alone; move it away, or set another "
            f"MERIDIAN_DATA, to begin a cluster"
        )

    def section(self, region: LocalRegion) -> str:
        """What the configuration of a region says of the cluster. Issues the region's certificate if it has none yet.
        Raises LocalError, OSError."""
        if not self.cluster_id:
            return ""
        self._certify(region)
        addresses = [f'"{each.member}={each.peers}"' for each in self.regions]
        return f"""
[cluster]
id = "{self.cluster_id}"
members = [{", ".join(addresses)}]
ca = "{TLS_FOLDER}/ca.crt"
certificate = "{TLS_FOLDER}/node.crt"
key = "{TLS_FOLDER}/node.key"
"""

    def _certify(self, region: LocalRegion) -> None:
        folder = region.folder.path / TLS_FOLDER
        if folder.is_dir():
            return
        from node.authority import Authority, AuthorityError, publish

        try:
            publish(folder, Authority.load(self.cluster.data).issue(region.member, CERTIFICATE_DAYS).files)
        except AuthorityError as error:
            if not folder.is_dir():  # else somebody was faster
                raise LocalError(f"region {region.name}: {error}") from error


def stands_alone(cluster: Cluster) -> bool:
    """Whether the first region began alone."""
    return not (cluster.data / _RECORD).exists() and (cluster.regions[0].folder.path / "data" / "identity").exists()


def _read(data: Path) -> _Record | None:
    path = data / _RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise LocalError(f"{path} is damaged: {error}") from error


def _found(cluster: Cluster) -> _Record:
    """Makes the cluster. What is there without the record, written last, is of a start that was cut short."""
    cluster.data.mkdir(parents=True, exist_ok=True)
    with _turn(cluster.data):
        if record := _read(cluster.data):
            return record
        names = tuple(region.name for region in cluster.regions)
        cluster_id = _make_authority(cluster.data) if len(names) > 1 else ""
        record = _Record(names, cluster_id)
        content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
        smallfile.put(cluster.data / _RECORD, content, mode=0o644)
        return record


def _make_authority(data: Path) -> str:
    from node.authority import Authority

    authority = Authority.create()
    for name, content in authority.files.items():
        smallfile.put(data / name, content, mode=0o600 if name.endswith(".key") else 0o644)
    return authority.cluster_id


@contextlib.contextmanager
def _turn(data: Path) -> Iterator[None]:
    """Takes milliseconds, so whoever comes second waits."""
    with (data / "cluster.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
