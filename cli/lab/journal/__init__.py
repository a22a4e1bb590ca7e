"""The drills' canister: an append-only, hash-chained journal.

An entry is keyed by its client and the client's sequence number, so a repeated write is answered
with the first one's entry and nothing is ever there twice.
"""

from replica.abi.v1 import LATER, Refuse, decode, encode, query, reply, sha256, update

TEXT_MAX = 4096
PAGE_MAX = 1000


@update
def append(ctx, arg):
    if len(arg["text"]) > TEXT_MAX:
        raise Refuse(f"an entry has at most {TEXT_MAX} characters")
    entries = ctx.table("entries")
    for known in entries.by_index("unique_source", ctx.caller, arg["sequence"]):
        return known
    last = next(iter(entries.range(reverse=True)), None)
    number = 0 if last is None else last["number"] + 1
    before = bytes(32) if last is None else last["hash"]
    entry = {
        "number": number,
        "client": ctx.caller,
        "sequence": arg["sequence"],
        "text": arg["text"],
        "hash": chain(before, ctx.caller, arg["sequence"], arg["text"]),
        "time_ns": ctx.time_ns,
    }
    entries.put(**entry)
    ctx.set_certified_data(entry["hash"])
    return entry


def chain(before, client, sequence, text):
    return sha256(before + sha256(bytes(client)) + sequence.to_bytes(8, "big") + text.encode())


@query
def get(ctx, number):
    return ctx.table("entries").get(number)


@query
def tail(ctx, count):
    out = []
    for entry in ctx.table("entries").range(reverse=True):
        if len(out) >= min(count, PAGE_MAX):
            break
        out.append(entry)
    return out


@query
def page(ctx, arg):
    out = []
    for entry in ctx.table("entries").range(start=(arg["start"],)):
        if len(out) >= min(arg["limit"], PAGE_MAX):
            break
        out.append(entry)
    return out


@query
def status(ctx):
    last = next(iter(ctx.table("entries").range(reverse=True)), None)
    return {
        "length": 0 if last is None else last["number"] + 1,
        "head": bytes(32) if last is None else last["hash"],
        "certificate": ctx.certificate(),
    }


@query
def echo(ctx, text):
    return text


@update
def relay(ctx, text):
    """Call `echo` of this canister and answer with what came back: a call in flight to watch."""
    ctx.call(ctx.self_id, "echo", encode("(text)", text), on_reply="on_echo")
    return LATER


@reply
def on_echo(ctx, outcome, _context):
    if not outcome.ok:
        raise Refuse(outcome.reject_message)
    return "relayed: " + decode("(text)", outcome.reply)[0]
