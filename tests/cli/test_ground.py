"""Where local swarms stand: their ports are nobody else's."""

from __future__ import annotations

import socket

from cli.lab.ground import PORTS_FROM, Ground, first_given_port


def test_no_outgoing_connection_is_given_a_nodes_port() -> None:
    ports = Ground().free_ports(15)
    assert len(set(ports)) == 15
    assert all(PORTS_FROM <= port < first_given_port() for port in ports)


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    ground = Ground()
    ground.world.entropy = lambda count: bytes(count)  # begin at the first port
    (first,) = ground.free_ports(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", first))
        other.listen()
        assert first not in ground.free_ports(5)
