"""Voting power in whole numbers, and the snapshots that ballots are taken from.

deciding power = stake x (1 + 2 t^2) x (1 + a / 4), floored once, with
t = dissolve delay over two years and a = age over four years, each at most 1.
Source: reference/governance.md §1.3 (Mission 70); integers instead of the IC's decimals.
"""

DELAY_MAX = 2 * 31_557_600  # seconds: two years of 365.25 days
AGE_MAX = 4 * 31_557_600  # seconds
INITIAL_DELAY = 7 * 86_400  # seconds, of a neuron that was just claimed


def delay_of(neuron, now):
    if neuron["dissolving"]:
        return max(neuron["dissolve_seconds"] - now, 0)
    return neuron["dissolve_seconds"]


def age_of(neuron, now):
    return 0 if neuron["dissolving"] else max(now - neuron["aging_since"], 0)


def state_of(neuron, now):
    """Return 1 locked, 2 dissolving, 3 dissolved."""
    if not neuron["dissolving"]:
        return 1
    return 2 if neuron["dissolve_seconds"] > now else 3


def voting_power(neuron, now):
    stake = max(neuron["stake_e8s"] - neuron["fees_e8s"], 0)
    delay = min(delay_of(neuron, now), DELAY_MAX)
    age = min(age_of(neuron, now), AGE_MAX)
    numerator = stake * (DELAY_MAX * DELAY_MAX + 2 * delay * delay) * (4 * AGE_MAX + age)
    return numerator // (DELAY_MAX * DELAY_MAX * 4 * AGE_MAX)


def take_snapshot(ctx, now, delay_min):
    """Store the voting power of every neuron that may vote; return (id, total)."""
    ids, powers, total = bytearray(), bytearray(), 0
    for neuron in ctx.table("neurons").range():
        if delay_of(neuron, now) < delay_min:
            continue
        power = voting_power(neuron, now)
        if power:
            ids += neuron["id"].to_bytes(8, "big")
            powers += power.to_bytes(8, "big")
            total += power
    newest = next(iter(ctx.table("snapshots").range(reverse=True)), None)
    if newest is not None and newest["neurons"] == ids and newest["powers"] == powers:
        return newest["id"], total
    number = 1 if newest is None else newest["id"] + 1
    ctx.table("snapshots").put(id=number, neurons=bytes(ids), powers=bytes(powers))
    return number, total


def position_of(snapshot, neuron_id):
    """Return a neuron's index in a snapshot (ids ascend: binary search), or None."""
    ids, low, high = snapshot["neurons"], 0, len(snapshot["neurons"]) // 8
    wanted = neuron_id.to_bytes(8, "big")
    while low < high:
        middle = (low + high) // 2
        if ids[8 * middle : 8 * middle + 8] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if ids[8 * low : 8 * low + 8] == wanted else None


def power_at(snapshot, position):
    return int.from_bytes(snapshot["powers"][8 * position : 8 * position + 8], "big")


def vote_at(votes, position):
    """Return 0 none, 1 yes, 2 no."""
    return (votes[position // 4] >> (2 * (position % 4))) & 3


def with_vote(votes, position, vote):
    changed = bytearray(votes)
    changed[position // 4] |= vote << (2 * (position % 4))
    return bytes(changed)
