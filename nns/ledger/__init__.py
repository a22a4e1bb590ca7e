"""The ledger: accounts and a chain of hash-linked blocks in the IC's encoding.

The certified data is the hash of the last block, so a client can check any balance change.
Source: reference/governance.md §6 (dfinity/ic rs/ledger_suite/icp).
"""

from replica.abi.v1 import (
    GOVERNANCE,
    Refuse,
    account_identifier,
    init,
    messages,
    query,
    sha256,
    update,
)

FEE = 10_000
WINDOW_NS = 24 * 3600 * 1_000_000_000
DRIFT_NS = 60 * 1_000_000_000
MINTING = account_identifier(GOVERNANCE)


@init
def install(ctx, arg):
    for account in arg["initial"]:
        credit(ctx, account["account"], account["e8s"])
        mint = messages.Mint(
            to=messages.AccountIdentifier(hash=account["account"]),
            amount=messages.Tokens(e8s=account["e8s"]),
        )
        append(ctx, messages.LedgerTransaction(mint=mint))


@query
def account_balance(ctx, arg):
    return {"e8s": balance(ctx, arg["account"])}


@query
def transfer_fee(ctx, _arg):
    return {"transfer_fee": {"e8s": FEE}}


@update
def transfer(ctx, arg):
    source = account_identifier(ctx.caller, arg["from_subaccount"] or bytes(32))
    target, amount = arg["to"], arg["amount"]["e8s"]
    if len(target) != 32 or account_checksum(target) != target[:4]:
        raise Refuse("`to` is not an account identifier of 32 bytes with a right checksum")
    moves_supply = source == MINTING or target == MINTING
    fee = 0 if moves_supply else FEE
    if arg["fee"]["e8s"] != fee:
        return {"Err": {"BadFee": {"expected_fee": {"e8s": fee}}}}
    created = arg["created_at_time"]
    created_ns = ctx.time_ns if created is None else created["timestamp_nanos"]
    if created_ns + WINDOW_NS < ctx.time_ns:
        return {"Err": {"TxTooOld": {"allowed_window_nanos": WINDOW_NS}}}
    if created_ns > ctx.time_ns + DRIFT_NS:
        return {"Err": {"TxCreatedInFuture": None}}
    transaction = describe(source, target, amount, fee, arg["memo"], created_ns)
    id_ = sha256(messages.serialize(transaction))
    forget_old(ctx)
    if created is not None:
        known = ctx.table("recent").get(id_)
        if known is not None:
            return {"Err": {"TxDuplicate": {"duplicate_of": known["number"]}}}
    if source != MINTING:
        held = balance(ctx, source)
        if held < amount + fee:
            return {"Err": {"InsufficientFunds": {"balance": {"e8s": held}}}}
        credit(ctx, source, -amount - fee)
    if target != MINTING:
        credit(ctx, target, amount)
    number = append(ctx, transaction)
    if created is not None:
        ctx.table("recent").put(transfer=id_, number=number, created_ns=created_ns)
        ctx.table("recent_by_time").put(created_ns=created_ns, transfer=id_)
    return {"Ok": number}


@query
def query_encoded_blocks(ctx, arg):
    blocks = []
    for row in ctx.table("blocks").range(start=(arg["start"],)):
        if len(blocks) >= min(arg["length"], 2000):
            break
        blocks.append(row["encoded"])
    return {"blocks": blocks, "chain_length": length(ctx), "certificate": ctx.certificate()}


@query
def tip_of_chain(ctx):
    return {"certification": ctx.certificate(), "tip_index": max(length(ctx) - 1, 0)}


def account_checksum(account):
    return crc32(account[4:]).to_bytes(4, "big")


def crc32(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def balance(ctx, account):
    row = ctx.table("accounts").get(account)
    return 0 if row is None else row["e8s"]


def credit(ctx, account, e8s):
    after = balance(ctx, account) + e8s
    if after:
        ctx.table("accounts").put(account=account, e8s=after)
    else:
        ctx.table("accounts").delete(account)


def describe(source, target, amount, fee, memo, created_ns):
    transaction = messages.LedgerTransaction(
        memo=messages.Memo(memo=memo),
        created_at_time=messages.TimeStamp(timestamp_nanos=created_ns),
    )
    tokens = messages.Tokens(e8s=amount)
    from_ = messages.AccountIdentifier(hash=source)
    to = messages.AccountIdentifier(hash=target)
    if source == MINTING:
        transaction.mint.CopyFrom(messages.Mint(to=to, amount=tokens))
    elif target == MINTING:
        burn = messages.Burn(amount=tokens, **{"from": from_})
        transaction.burn.CopyFrom(burn)
    else:
        send = messages.Transfer(
            to=to, amount=tokens, max_fee=messages.Tokens(e8s=fee), **{"from": from_}
        )
        transaction.send.CopyFrom(send)
    return transaction


def append(ctx, transaction):
    number = length(ctx)
    block = messages.LedgerBlock(
        timestamp=messages.TimeStamp(timestamp_nanos=ctx.time_ns), transaction=transaction
    )
    if number:
        parent = ctx.table("blocks").get(number - 1)["hash"]
        block.parent_hash.CopyFrom(messages.Hash(hash=parent))
    encoded = messages.serialize(block)
    hash_ = sha256(encoded)
    ctx.table("blocks").put(number=number, encoded=encoded, hash=hash_)
    ctx.set_certified_data(hash_)
    return number


def length(ctx):
    for row in ctx.table("blocks").range(reverse=True):
        return row["number"] + 1
    return 0


def forget_old(ctx):
    """Drop a few entries that are older than the window: bounded work per transfer."""
    old = []
    for row in ctx.table("recent_by_time").range():
        if len(old) >= 4 or row["created_ns"] + WINDOW_NS >= ctx.time_ns:
            break
        old.append(row)
    for row in old:
        ctx.table("recent").delete(row["transfer"])
        ctx.table("recent_by_time").delete(row["created_ns"], row["transfer"])
