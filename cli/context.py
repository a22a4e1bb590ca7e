"""What every command starts from: the swarm, the identity, agents. Imported late."""

from __future__ import annotations

from pathlib import Path

from cli.lab.layout import SubnetEntry, Swarm
from replica.client import certified_registry
from replica.client.agent import Agent
from replica.client.local_registry import VersionedRecords
from replica.protocol.ids import Principal, SubnetId


def swarm(folder: Path) -> Swarm:
    return Swarm.load(folder)


def nns_agent(found: Swarm, identity: str | None = None) -> Agent:
    key = found.identity(identity) if identity is not None else None
    return found.agent(found.nns, key)


def records(found: Swarm) -> VersionedRecords:
    """Fetch the whole registry, certified."""
    return certified_registry.fetch(nns_agent(found))


def status_rows(found: Swarm, subnet: SubnetEntry | None = None) -> list[dict[str, object]]:
    """Return one row a node, from what the nodes say of themselves."""
    from cli.recovery import detect

    probe = Agent([], found.root_key, timeout_s=2.0)
    names = {str(s.id): s.name for s in found.subnets}
    rows = []
    entries = [subnet] if subnet is not None else list(found.subnets)
    if subnet is None and found.spares:
        entries.append(SubnetEntry("spare", SubnetId(Principal(b"")), found.spares))
    for entry in entries:
        reports = detect.look(entry, probe)
        troubles = probe.each(lambda report: detect.trouble(report, probe), reports)
        for report, trouble in zip(reports, troubles, strict=True):
            status = report.status or {}
            rows.append(
                {
                    "name": report.node.name,
                    "id": str(report.node.id),
                    "subnet": names.get(str(status.get("subnet_id")), entry.name),
                    "status": status.get("status", "unreachable"),
                    "finalized": status.get("finalized_height"),
                    "certified": status.get("certified_height"),
                    "cup": status.get("cup_height"),
                    "registry": status.get("registry_version"),
                    "state_digest": str(status.get("state_digest", ""))[:12],
                    "trouble": trouble,
                    "url": report.node.http_url,
                }
            )
    return rows
