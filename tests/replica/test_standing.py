"""What follows for a peer that sends what is wrong, or what leads to nothing."""

from __future__ import annotations

from replica.p2p import standing, wire
from replica.p2p.standing import Bucket, Ledger, Standing


def test_a_bucket_holds_a_burst_and_then_a_rate() -> None:
    bucket = Bucket(10, 20)
    assert [bucket.take(10, 0.0) for _ in range(2)] == [0.0, 0.0]
    assert bucket.take(5, 0.0) == 0.5
    assert bucket.take(5, 2.0) == 0.0, "time fills it again"
    assert bucket.take(20, 100.0) == 0.0, "up to the burst"


def test_faults_slow_then_disconnect_for_longer_each_time_and_are_forgotten() -> None:
    peer = Standing()
    assert not any(peer.fault(0, 0.0) for _ in range(10))
    assert peer.frame(wire.ARTIFACT, 0.0) == standing.SLOWED_S
    assert peer.frame(wire.ARTIFACT, 60.0) == 0.0, "time takes the score away"
    barred = []
    now = 100.0
    for _ in range(9):
        while not peer.fault(0, now):
            pass
        assert peer.is_barred(now)
        barred.append(peer.barred_until_s - now)
        now = peer.barred_until_s
        assert not peer.is_barred(now)
    assert barred == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    now += standing.FORGIVEN_S + 1
    while not peer.fault(0, now):
        pass
    assert peer.barred_until_s - now == 1
    assert peer.plain(now)["disconnections"] == 10


def test_a_large_fault_counts_for_more() -> None:
    assert Standing().fault(6 << 20, 0.0), "it took as long to decode as fifty small ones"
    assert not Standing().fault(100, 0.0)


def test_what_leads_to_nothing_only_ever_slows() -> None:
    """An interval that is offered again passes; ten megabytes a second don't."""
    peer = Standing()
    assert sum(peer.nothing(200, 0.0) for _ in range(8_000)) == 0.0
    flooder = Standing()
    now = sent = 0.0
    while now < 60:
        now += 0.001 + flooder.nothing(10_000, now)
        sent += 10_000
    assert sent < (64 << 20) + 62 * (4 << 20)
    assert not flooder.is_barred(now) and flooder.score == 0
    assert flooder.plain(now)["slowed_frames"]


def test_small_frames_that_lead_to_nothing_are_slowed_by_their_number() -> None:
    peer, now, frames = Standing(), 0.0, 0
    while now < 30:
        now += 0.00002 + peer.nothing(30, now)
        frames += 1
    assert frames < 16_000 + 31 * 1_000


def test_questions_and_adverts_have_a_rate_of_their_own() -> None:
    peer = Standing()
    assert [peer.frame(wire.ASK, 0.0) > 0 for _ in range(4)] == [False, False, True, True]
    assert peer.frame(wire.INGRESS, 0.0) == 0.0


def test_a_peer_and_subject_have_one_line_a_minute() -> None:
    ledger = Ledger()
    lines = [ledger.line(b"p", "Beacon", f"wrong {i}", i / 10) for i in range(1000)]
    assert [text for text in lines if text] == ["wrong 0", "wrong 600 (599 more since)"]
    assert ledger.line(b"q", "Beacon", "other", 1.0) == "other"


def test_who_dials_in_a_loop_is_let_in_once_a_second() -> None:
    peer = Standing()
    let_in = sum(peer.dial(i / 100) for i in range(6000))
    assert let_in <= 32 + 60 + 1
    assert peer.plain(60.0)["refused_dials"] == 6000 - let_in
    assert peer.dial(62.0), "it comes back as soon as it waits"


def test_who_dials_as_a_peer_does_that_is_cut_off_is_let_in() -> None:
    peer, now_s, pause_s = Standing(), 0.0, 0.1
    for _ in range(500):
        assert peer.dial(now_s)
        now_s += pause_s
        pause_s = min(2 * pause_s, 2.0)
