"""Records that travel through a call's context."""

from replica.abi.v1 import decode, encode

from .actions import ACTION_TYPE

PROPOSAL = f"""record {{
  url : text; title : opt text; summary : text; action : opt {ACTION_TYPE};
}}"""


def encode_context(neuron_id, type_, value):
    return encode(f"(nat64, {type_})", neuron_id, value)


def decode_context(type_, raw):
    return decode(f"(nat64, {type_})", raw)
