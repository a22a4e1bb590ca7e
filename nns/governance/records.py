"""Records that travel through a call's context."""

from replica.abi.v1 import decode, encode

PROPOSAL = """record {
  url : text; title : opt text; summary : text; action : opt variant {
    Motion : record { motion_text : text };
    ExecuteNnsFunction : record { nns_function : int32; payload : blob };
    InstallCode : record {
      canister_id : opt principal; install_mode : opt int32; wasm_module : opt blob;
      arg : opt blob; skip_stopping_before_installing : opt bool;
    };
  };
}"""


def encode_context(neuron_id, type_, value):
    return encode(f"(nat64, {type_})", neuron_id, value)


def decode_context(type_, raw):
    return decode(f"(nat64, {type_})", raw)
