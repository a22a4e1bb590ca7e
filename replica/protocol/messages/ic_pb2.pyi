from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NiDkgId(_message.Message):
    __slots__ = ("start_block_height", "dealer_subnet", "dkg_tag")
    START_BLOCK_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEALER_SUBNET_FIELD_NUMBER: _ClassVar[int]
    DKG_TAG_FIELD_NUMBER: _ClassVar[int]
    start_block_height: int
    dealer_subnet: bytes
    dkg_tag: int
    def __init__(self, start_block_height: _Optional[int] = ..., dealer_subnet: _Optional[bytes] = ..., dkg_tag: _Optional[int] = ...) -> None: ...

class CatchUpPackage(_message.Message):
    __slots__ = ("content", "signature", "signer")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    signature: bytes
    signer: NiDkgId
    def __init__(self, content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signer: _Optional[_Union[NiDkgId, _Mapping]] = ...) -> None: ...

class CatchUpContent(_message.Message):
    __slots__ = ("block", "random_beacon", "state_hash", "block_hash", "random_beacon_hash", "oldest_registry_version_in_use_by_replicated_state")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    RANDOM_BEACON_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASH_FIELD_NUMBER: _ClassVar[int]
    RANDOM_BEACON_HASH_FIELD_NUMBER: _ClassVar[int]
    OLDEST_REGISTRY_VERSION_IN_USE_BY_REPLICATED_STATE_FIELD_NUMBER: _ClassVar[int]
    block: Block
    random_beacon: RandomBeacon
    state_hash: bytes
    block_hash: bytes
    random_beacon_hash: bytes
    oldest_registry_version_in_use_by_replicated_state: int
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ..., random_beacon: _Optional[_Union[RandomBeacon, _Mapping]] = ..., state_hash: _Optional[bytes] = ..., block_hash: _Optional[bytes] = ..., random_beacon_hash: _Optional[bytes] = ..., oldest_registry_version_in_use_by_replicated_state: _Optional[int] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("version", "parent", "height", "rank", "time", "registry_version", "certified_height", "payload_hash", "canonical", "summary")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    version: str
    parent: bytes
    height: int
    rank: int
    time: int
    registry_version: int
    certified_height: int
    payload_hash: bytes
    canonical: bytes
    summary: bytes
    def __init__(self, version: _Optional[str] = ..., parent: _Optional[bytes] = ..., height: _Optional[int] = ..., rank: _Optional[int] = ..., time: _Optional[int] = ..., registry_version: _Optional[int] = ..., certified_height: _Optional[int] = ..., payload_hash: _Optional[bytes] = ..., canonical: _Optional[bytes] = ..., summary: _Optional[bytes] = ...) -> None: ...

class RandomBeacon(_message.Message):
    __slots__ = ("version", "height", "parent", "signature", "signer", "epoch")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    version: str
    height: int
    parent: bytes
    signature: bytes
    signer: NiDkgId
    epoch: int
    def __init__(self, version: _Optional[str] = ..., height: _Optional[int] = ..., parent: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signer: _Optional[_Union[NiDkgId, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("relative_path", "size_bytes", "hash")
    RELATIVE_PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    relative_path: str
    size_bytes: int
    hash: bytes
    def __init__(self, relative_path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class ChunkInfo(_message.Message):
    __slots__ = ("file_index", "size_bytes", "offset", "hash")
    FILE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    file_index: int
    size_bytes: int
    offset: int
    hash: bytes
    def __init__(self, file_index: _Optional[int] = ..., size_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("version", "file_table", "chunk_table")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_TABLE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TABLE_FIELD_NUMBER: _ClassVar[int]
    version: int
    file_table: _containers.RepeatedCompositeFieldContainer[FileInfo]
    chunk_table: _containers.RepeatedCompositeFieldContainer[ChunkInfo]
    def __init__(self, version: _Optional[int] = ..., file_table: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., chunk_table: _Optional[_Iterable[_Union[ChunkInfo, _Mapping]]] = ...) -> None: ...

class MetaManifest(_message.Message):
    __slots__ = ("version", "sub_manifest_hashes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUB_MANIFEST_HASHES_FIELD_NUMBER: _ClassVar[int]
    version: int
    sub_manifest_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, version: _Optional[int] = ..., sub_manifest_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RegistryMutation(_message.Message):
    __slots__ = ("mutation_type", "key", "value")
    MUTATION_TYPE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    mutation_type: int
    key: bytes
    value: bytes
    def __init__(self, mutation_type: _Optional[int] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Precondition(_message.Message):
    __slots__ = ("key", "expected_version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    expected_version: int
    def __init__(self, key: _Optional[bytes] = ..., expected_version: _Optional[int] = ...) -> None: ...

class RegistryAtomicMutateRequest(_message.Message):
    __slots__ = ("mutations", "preconditions")
    MUTATIONS_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONS_FIELD_NUMBER: _ClassVar[int]
    mutations: _containers.RepeatedCompositeFieldContainer[RegistryMutation]
    preconditions: _containers.RepeatedCompositeFieldContainer[Precondition]
    def __init__(self, mutations: _Optional[_Iterable[_Union[RegistryMutation, _Mapping]]] = ..., preconditions: _Optional[_Iterable[_Union[Precondition, _Mapping]]] = ...) -> None: ...

class RegistryValue(_message.Message):
    __slots__ = ("value", "version", "deletion_marker")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DELETION_MARKER_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    version: int
    deletion_marker: bool
    def __init__(self, value: _Optional[bytes] = ..., version: _Optional[int] = ..., deletion_marker: _Optional[bool] = ...) -> None: ...

class RegistryDelta(_message.Message):
    __slots__ = ("key", "values")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    values: _containers.RepeatedCompositeFieldContainer[RegistryValue]
    def __init__(self, key: _Optional[bytes] = ..., values: _Optional[_Iterable[_Union[RegistryValue, _Mapping]]] = ...) -> None: ...

class RegistryGetChangesSinceRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class UInt64Value(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: int
    def __init__(self, value: _Optional[int] = ...) -> None: ...

class RegistryGetValueRequest(_message.Message):
    __slots__ = ("version", "key")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    version: UInt64Value
    key: bytes
    def __init__(self, version: _Optional[_Union[UInt64Value, _Mapping]] = ..., key: _Optional[bytes] = ...) -> None: ...

class RegistryError(_message.Message):
    __slots__ = ("code", "reason", "key")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    key: bytes
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., key: _Optional[bytes] = ...) -> None: ...

class RegistryGetValueResponse(_message.Message):
    __slots__ = ("error", "version", "value")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    error: RegistryError
    version: int
    value: bytes
    def __init__(self, error: _Optional[_Union[RegistryError, _Mapping]] = ..., version: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MixedHashTree(_message.Message):
    __slots__ = ("empty", "fork", "labeled", "leaf_data", "pruned_digest")
    class Fork(_message.Message):
        __slots__ = ("left_tree", "right_tree")
        LEFT_TREE_FIELD_NUMBER: _ClassVar[int]
        RIGHT_TREE_FIELD_NUMBER: _ClassVar[int]
        left_tree: MixedHashTree
        right_tree: MixedHashTree
        def __init__(self, left_tree: _Optional[_Union[MixedHashTree, _Mapping]] = ..., right_tree: _Optional[_Union[MixedHashTree, _Mapping]] = ...) -> None: ...
    class Labeled(_message.Message):
        __slots__ = ("label", "subtree")
        LABEL_FIELD_NUMBER: _ClassVar[int]
        SUBTREE_FIELD_NUMBER: _ClassVar[int]
        label: bytes
        subtree: MixedHashTree
        def __init__(self, label: _Optional[bytes] = ..., subtree: _Optional[_Union[MixedHashTree, _Mapping]] = ...) -> None: ...
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    LABELED_FIELD_NUMBER: _ClassVar[int]
    LEAF_DATA_FIELD_NUMBER: _ClassVar[int]
    PRUNED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    empty: Empty
    fork: MixedHashTree.Fork
    labeled: MixedHashTree.Labeled
    leaf_data: bytes
    pruned_digest: bytes
    def __init__(self, empty: _Optional[_Union[Empty, _Mapping]] = ..., fork: _Optional[_Union[MixedHashTree.Fork, _Mapping]] = ..., labeled: _Optional[_Union[MixedHashTree.Labeled, _Mapping]] = ..., leaf_data: _Optional[bytes] = ..., pruned_digest: _Optional[bytes] = ...) -> None: ...

class CertifiedResponse(_message.Message):
    __slots__ = ("hash_tree", "certificate")
    HASH_TREE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    hash_tree: MixedHashTree
    certificate: bytes
    def __init__(self, hash_tree: _Optional[_Union[MixedHashTree, _Mapping]] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class PrincipalId(_message.Message):
    __slots__ = ("raw",)
    RAW_FIELD_NUMBER: _ClassVar[int]
    raw: bytes
    def __init__(self, raw: _Optional[bytes] = ...) -> None: ...

class SubnetId(_message.Message):
    __slots__ = ("principal_id",)
    PRINCIPAL_ID_FIELD_NUMBER: _ClassVar[int]
    principal_id: PrincipalId
    def __init__(self, principal_id: _Optional[_Union[PrincipalId, _Mapping]] = ...) -> None: ...

class CanisterId(_message.Message):
    __slots__ = ("principal_id",)
    PRINCIPAL_ID_FIELD_NUMBER: _ClassVar[int]
    principal_id: PrincipalId
    def __init__(self, principal_id: _Optional[_Union[PrincipalId, _Mapping]] = ...) -> None: ...

class CanisterIdRange(_message.Message):
    __slots__ = ("start_canister_id", "end_canister_id")
    START_CANISTER_ID_FIELD_NUMBER: _ClassVar[int]
    END_CANISTER_ID_FIELD_NUMBER: _ClassVar[int]
    start_canister_id: CanisterId
    end_canister_id: CanisterId
    def __init__(self, start_canister_id: _Optional[_Union[CanisterId, _Mapping]] = ..., end_canister_id: _Optional[_Union[CanisterId, _Mapping]] = ...) -> None: ...

class RoutingTable(_message.Message):
    __slots__ = ("entries",)
    class Entry(_message.Message):
        __slots__ = ("range", "subnet_id")
        RANGE_FIELD_NUMBER: _ClassVar[int]
        SUBNET_ID_FIELD_NUMBER: _ClassVar[int]
        range: CanisterIdRange
        subnet_id: SubnetId
        def __init__(self, range: _Optional[_Union[CanisterIdRange, _Mapping]] = ..., subnet_id: _Optional[_Union[SubnetId, _Mapping]] = ...) -> None: ...
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[RoutingTable.Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[RoutingTable.Entry, _Mapping]]] = ...) -> None: ...

class PublicKey(_message.Message):
    __slots__ = ("version", "algorithm", "key_value", "proof_data")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_FIELD_NUMBER: _ClassVar[int]
    PROOF_DATA_FIELD_NUMBER: _ClassVar[int]
    version: int
    algorithm: int
    key_value: bytes
    proof_data: bytes
    def __init__(self, version: _Optional[int] = ..., algorithm: _Optional[int] = ..., key_value: _Optional[bytes] = ..., proof_data: _Optional[bytes] = ...) -> None: ...

class X509PublicKeyCert(_message.Message):
    __slots__ = ("certificate_der",)
    CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    certificate_der: bytes
    def __init__(self, certificate_der: _Optional[bytes] = ...) -> None: ...

class ConnectionEndpoint(_message.Message):
    __slots__ = ("ip_addr", "port")
    IP_ADDR_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ip_addr: str
    port: int
    def __init__(self, ip_addr: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class NodeRecord(_message.Message):
    __slots__ = ("http", "node_operator_id", "p2p", "orchestrator")
    HTTP_FIELD_NUMBER: _ClassVar[int]
    NODE_OPERATOR_ID_FIELD_NUMBER: _ClassVar[int]
    P2P_FIELD_NUMBER: _ClassVar[int]
    ORCHESTRATOR_FIELD_NUMBER: _ClassVar[int]
    http: ConnectionEndpoint
    node_operator_id: bytes
    p2p: ConnectionEndpoint
    orchestrator: ConnectionEndpoint
    def __init__(self, http: _Optional[_Union[ConnectionEndpoint, _Mapping]] = ..., node_operator_id: _Optional[bytes] = ..., p2p: _Optional[_Union[ConnectionEndpoint, _Mapping]] = ..., orchestrator: _Optional[_Union[ConnectionEndpoint, _Mapping]] = ...) -> None: ...

class NodeOperatorRecord(_message.Message):
    __slots__ = ("node_operator_principal_id", "public_key_der")
    NODE_OPERATOR_PRINCIPAL_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_DER_FIELD_NUMBER: _ClassVar[int]
    node_operator_principal_id: bytes
    public_key_der: bytes
    def __init__(self, node_operator_principal_id: _Optional[bytes] = ..., public_key_der: _Optional[bytes] = ...) -> None: ...

class SubnetListRecord(_message.Message):
    __slots__ = ("subnets",)
    SUBNETS_FIELD_NUMBER: _ClassVar[int]
    subnets: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, subnets: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SubnetRecord(_message.Message):
    __slots__ = ("membership", "unit_delay_millis", "initial_notary_delay_millis", "replica_version_id", "dkg_interval_length", "start_as_nns", "dkg_dealings_per_block", "subnet_type", "is_halted", "max_ingress_messages_per_block", "halt_at_cup_height", "recalled_replica_version_ids", "certification_backoff_millis", "trusted_bundle_hashes", "stall_limit_millis")
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    UNIT_DELAY_MILLIS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_NOTARY_DELAY_MILLIS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    DKG_INTERVAL_LENGTH_FIELD_NUMBER: _ClassVar[int]
    START_AS_NNS_FIELD_NUMBER: _ClassVar[int]
    DKG_DEALINGS_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    SUBNET_TYPE_FIELD_NUMBER: _ClassVar[int]
    IS_HALTED_FIELD_NUMBER: _ClassVar[int]
    MAX_INGRESS_MESSAGES_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    HALT_AT_CUP_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RECALLED_REPLICA_VERSION_IDS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATION_BACKOFF_MILLIS_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_BUNDLE_HASHES_FIELD_NUMBER: _ClassVar[int]
    STALL_LIMIT_MILLIS_FIELD_NUMBER: _ClassVar[int]
    membership: _containers.RepeatedScalarFieldContainer[bytes]
    unit_delay_millis: int
    initial_notary_delay_millis: int
    replica_version_id: str
    dkg_interval_length: int
    start_as_nns: bool
    dkg_dealings_per_block: int
    subnet_type: int
    is_halted: bool
    max_ingress_messages_per_block: int
    halt_at_cup_height: bool
    recalled_replica_version_ids: _containers.RepeatedScalarFieldContainer[str]
    certification_backoff_millis: int
    trusted_bundle_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    stall_limit_millis: int
    def __init__(self, membership: _Optional[_Iterable[bytes]] = ..., unit_delay_millis: _Optional[int] = ..., initial_notary_delay_millis: _Optional[int] = ..., replica_version_id: _Optional[str] = ..., dkg_interval_length: _Optional[int] = ..., start_as_nns: _Optional[bool] = ..., dkg_dealings_per_block: _Optional[int] = ..., subnet_type: _Optional[int] = ..., is_halted: _Optional[bool] = ..., max_ingress_messages_per_block: _Optional[int] = ..., halt_at_cup_height: _Optional[bool] = ..., recalled_replica_version_ids: _Optional[_Iterable[str]] = ..., certification_backoff_millis: _Optional[int] = ..., trusted_bundle_hashes: _Optional[_Iterable[bytes]] = ..., stall_limit_millis: _Optional[int] = ...) -> None: ...

class ReplicaVersionRecord(_message.Message):
    __slots__ = ("release_package_sha256_hex", "release_package_urls")
    RELEASE_PACKAGE_SHA256_HEX_FIELD_NUMBER: _ClassVar[int]
    RELEASE_PACKAGE_URLS_FIELD_NUMBER: _ClassVar[int]
    release_package_sha256_hex: str
    release_package_urls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, release_package_sha256_hex: _Optional[str] = ..., release_package_urls: _Optional[_Iterable[str]] = ...) -> None: ...

class BlessedReplicaVersions(_message.Message):
    __slots__ = ("blessed_version_ids",)
    BLESSED_VERSION_IDS_FIELD_NUMBER: _ClassVar[int]
    blessed_version_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, blessed_version_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class NnsRecoveryRecord(_message.Message):
    __slots__ = ("height", "time", "state_height", "state_hash", "replica_version_id", "canister_id", "module_hash")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_VERSION_ID_FIELD_NUMBER: _ClassVar[int]
    CANISTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_HASH_FIELD_NUMBER: _ClassVar[int]
    height: int
    time: int
    state_height: int
    state_hash: bytes
    replica_version_id: str
    canister_id: bytes
    module_hash: bytes
    def __init__(self, height: _Optional[int] = ..., time: _Optional[int] = ..., state_height: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., replica_version_id: _Optional[str] = ..., canister_id: _Optional[bytes] = ..., module_hash: _Optional[bytes] = ...) -> None: ...

class ProvisionalWhitelist(_message.Message):
    __slots__ = ("list_type", "set")
    LIST_TYPE_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    list_type: int
    set: _containers.RepeatedCompositeFieldContainer[PrincipalId]
    def __init__(self, list_type: _Optional[int] = ..., set: _Optional[_Iterable[_Union[PrincipalId, _Mapping]]] = ...) -> None: ...

class InitialNiDkgTranscriptRecord(_message.Message):
    __slots__ = ("id", "threshold", "committee", "registry_version", "internal_csp_transcript")
    ID_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    COMMITTEE_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_CSP_TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    id: NiDkgId
    threshold: int
    committee: _containers.RepeatedScalarFieldContainer[bytes]
    registry_version: int
    internal_csp_transcript: bytes
    def __init__(self, id: _Optional[_Union[NiDkgId, _Mapping]] = ..., threshold: _Optional[int] = ..., committee: _Optional[_Iterable[bytes]] = ..., registry_version: _Optional[int] = ..., internal_csp_transcript: _Optional[bytes] = ...) -> None: ...

class RegistryStoreUri(_message.Message):
    __slots__ = ("uri", "hash", "registry_version")
    URI_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_VERSION_FIELD_NUMBER: _ClassVar[int]
    uri: str
    hash: str
    registry_version: int
    def __init__(self, uri: _Optional[str] = ..., hash: _Optional[str] = ..., registry_version: _Optional[int] = ...) -> None: ...

class GenesisArgs(_message.Message):
    __slots__ = ("height",)
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    height: int
    def __init__(self, height: _Optional[int] = ...) -> None: ...

class RecoveryArgs(_message.Message):
    __slots__ = ("height", "time", "state_hash")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    height: int
    time: int
    state_hash: bytes
    def __init__(self, height: _Optional[int] = ..., time: _Optional[int] = ..., state_hash: _Optional[bytes] = ...) -> None: ...

class CatchUpPackageContents(_message.Message):
    __slots__ = ("initial_ni_dkg_transcript_low_threshold", "initial_ni_dkg_transcript_high_threshold", "height", "time", "state_hash", "registry_store_uri", "genesis", "recovery")
    INITIAL_NI_DKG_TRANSCRIPT_LOW_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    INITIAL_NI_DKG_TRANSCRIPT_HIGH_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_STORE_URI_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    initial_ni_dkg_transcript_low_threshold: InitialNiDkgTranscriptRecord
    initial_ni_dkg_transcript_high_threshold: InitialNiDkgTranscriptRecord
    height: int
    time: int
    state_hash: bytes
    registry_store_uri: RegistryStoreUri
    genesis: GenesisArgs
    recovery: RecoveryArgs
    def __init__(self, initial_ni_dkg_transcript_low_threshold: _Optional[_Union[InitialNiDkgTranscriptRecord, _Mapping]] = ..., initial_ni_dkg_transcript_high_threshold: _Optional[_Union[InitialNiDkgTranscriptRecord, _Mapping]] = ..., height: _Optional[int] = ..., time: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., registry_store_uri: _Optional[_Union[RegistryStoreUri, _Mapping]] = ..., genesis: _Optional[_Union[GenesisArgs, _Mapping]] = ..., recovery: _Optional[_Union[RecoveryArgs, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("e8s",)
    E8S_FIELD_NUMBER: _ClassVar[int]
    e8s: int
    def __init__(self, e8s: _Optional[int] = ...) -> None: ...

class Memo(_message.Message):
    __slots__ = ("memo",)
    MEMO_FIELD_NUMBER: _ClassVar[int]
    memo: int
    def __init__(self, memo: _Optional[int] = ...) -> None: ...

class TimeStamp(_message.Message):
    __slots__ = ("timestamp_nanos",)
    TIMESTAMP_NANOS_FIELD_NUMBER: _ClassVar[int]
    timestamp_nanos: int
    def __init__(self, timestamp_nanos: _Optional[int] = ...) -> None: ...

class AccountIdentifier(_message.Message):
    __slots__ = ("hash",)
    HASH_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    def __init__(self, hash: _Optional[bytes] = ...) -> None: ...

class Hash(_message.Message):
    __slots__ = ("hash",)
    HASH_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    def __init__(self, hash: _Optional[bytes] = ...) -> None: ...

class Burn(_message.Message):
    __slots__ = ("amount",)
    FROM_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    amount: Tokens
    def __init__(self, amount: _Optional[_Union[Tokens, _Mapping]] = ..., **kwargs) -> None: ...

class Mint(_message.Message):
    __slots__ = ("to", "amount")
    TO_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    to: AccountIdentifier
    amount: Tokens
    def __init__(self, to: _Optional[_Union[AccountIdentifier, _Mapping]] = ..., amount: _Optional[_Union[Tokens, _Mapping]] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("to", "amount", "max_fee")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_FEE_FIELD_NUMBER: _ClassVar[int]
    to: AccountIdentifier
    amount: Tokens
    max_fee: Tokens
    def __init__(self, to: _Optional[_Union[AccountIdentifier, _Mapping]] = ..., amount: _Optional[_Union[Tokens, _Mapping]] = ..., max_fee: _Optional[_Union[Tokens, _Mapping]] = ..., **kwargs) -> None: ...

class LedgerTransaction(_message.Message):
    __slots__ = ("burn", "mint", "send", "memo", "created_at_time")
    BURN_FIELD_NUMBER: _ClassVar[int]
    MINT_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    MEMO_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_TIME_FIELD_NUMBER: _ClassVar[int]
    burn: Burn
    mint: Mint
    send: Transfer
    memo: Memo
    created_at_time: TimeStamp
    def __init__(self, burn: _Optional[_Union[Burn, _Mapping]] = ..., mint: _Optional[_Union[Mint, _Mapping]] = ..., send: _Optional[_Union[Transfer, _Mapping]] = ..., memo: _Optional[_Union[Memo, _Mapping]] = ..., created_at_time: _Optional[_Union[TimeStamp, _Mapping]] = ...) -> None: ...

class LedgerBlock(_message.Message):
    __slots__ = ("parent_hash", "timestamp", "transaction")
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    parent_hash: Hash
    timestamp: TimeStamp
    transaction: LedgerTransaction
    def __init__(self, parent_hash: _Optional[_Union[Hash, _Mapping]] = ..., timestamp: _Optional[_Union[TimeStamp, _Mapping]] = ..., transaction: _Optional[_Union[LedgerTransaction, _Mapping]] = ...) -> None: ...
