"""What is fuzzed: for each format good inputs, and a reading that says whether it took an input for a good one."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from signed_targets import signed_targets
from target import Target

from coordinator.client.audit_bundle import AUDIT_FILES, verify_bundle
from coordinator.sites.certificate_request import request_key
from policies.cases import load_cases
from policies.evaluation import evaluate
from policies.packs import builtin_packs, builtin_policy, load_pack
from protocol.audit_event import AuditEvent, EventType, payload_hash
from protocol.audit_line import encode_line
from protocol.bundle import pack, unpack
from protocol.canonical import canonical, sha256_hex
from protocol.checkpoint import TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.envelope import Envelope, open_json, payload_type, seal
from protocol.errors import CloisterError
from protocol.merkle import RootHasher, Tree, inclusion_proof, leaf_hash, root
from protocol.note import KeyType, Note, VerifierKey, open_note, sign_text
from protocol.signing import MlDsa44SigningKey, SigningKey
from protocol.tiles import Tile, decode_bundle, decode_tile, encode_bundle, encode_tile, tile_reader
from protocol.tlog_proof import TlogProof
from protocol.witness_policy import WitnessPolicy

ORIGIN = "log.example/audit"
LOG_KEY = SigningKey.from_seed(b"l" * 32)
WITNESSES = {f"{letter}.example/w": SigningKey.from_seed(letter.encode() * 32) for letter in "abc"}
LATTICE = MlDsa44SigningKey.from_seed(b"d" * 32)
LOG = VerifierKey(ORIGIN, KeyType.ED25519, LOG_KEY.public.raw)
POLICY = WitnessPolicy(
    LOG,
    (*(cosigner_key(name, key) for name, key in WITNESSES.items()), cosigner_key("d.example/w", LATTICE)),
    3,
)
SALT = bytes(range(32))
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@cache
def targets() -> dict[str, Target]:
    """Every target by name. Raises ValueError where a good input is refused: then nothing is shown by refusals."""
    bundles, entries = _audit_bundles()
    found = {
        "notes": _notes(),
        "checkpoints": _checkpoints(),
        "tiles": _tiles(),
        "entry bundles": _entry_bundles(),
        "inclusion proofs": _proofs(),
        "witness policies": _policies(),
        "envelopes": _envelopes(),
        "certificate requests": _requests(),
        "packs": _packs(),
        "audit bundles": bundles,
        "audit entries": entries,
        "release containers": _containers(),
        **signed_targets(),
    }
    for name, target in found.items():
        for seed in target.seeds:
            try:
                taken = target.read(seed)
            except CloisterError as error:
                raise ValueError(f"{name}: a good input is refused: {error}") from error
            if not taken:
                raise ValueError(f"{name}: a good input is not taken")
    return found


def _note(size: int, tree_root: bytes) -> bytes:
    head = TreeHead(ORIGIN, size, tree_root)
    lines = [cosign(head, name, key, timestamp=1_700_000_000) for name, key in WITNESSES.items()]
    lines.append(cosign(head, "d.example/w", LATTICE, timestamp=1_700_000_000))
    return sign_checkpoint(head, LOG_KEY).with_signatures(*lines).to_bytes()


def _notes() -> Target:
    """Taken: another text, under a signature that verifies. An unknown key's line may change: it says nothing."""
    texts = ["one\n\ntwo\n", "cloister\n"]
    seeds = tuple(Note(text, (sign_text(text, ORIGIN, LOG_KEY),)).to_bytes() for text in texts)

    def read(data: bytes) -> bool:
        text, _ = open_note(data, (LOG,))
        return text not in texts or data in seeds

    return Target(seeds, (b"\n\n", "— ".encode(), ORIGIN.encode(), b"\n", b"="), read)


def _checkpoints() -> Target:
    """Taken: a head that the log never signed, or one that fewer than the quorum cosigned."""
    tree = Tree(leaf_hash(b"%d" % number) for number in range(9))
    heads = {(size, tree.root(size)) for size in (1, 8, 9)}
    seeds = tuple(_note(size, digest) for size, digest in heads)

    def read(data: bytes) -> bool:
        opened = POLICY.accept(data)
        return (opened.size, opened.root) not in heads or data in seeds

    return Target(seeds, (b"\n\n", "— ".encode(), ORIGIN.encode(), b"a.example/w", b"d.example/w", b"\n"), read)


def _tiles() -> Target:
    """Taken: other hashes under the same root."""
    hashes = [leaf_hash(b"%d" % number) for number in range(300)]
    tree = Tree(hashes)
    seeds = tuple(encode_tile(Tile(0, index, width), tree.read) for index, width in ((0, 256), (1, 44)))
    above = encode_tile(Tile(1, 0, 1), tree.read)

    def read(data: bytes) -> bool:
        for index, width in ((0, 256), (1, 44)):
            if len(data) == width * 32:
                parts = {Tile(0, 0): seeds[0], Tile(0, 1, 44): seeds[1], Tile(1, 0, 1): above}
                parts[Tile(0, index, width)] = data
                hasher = RootHasher()
                for tile in (Tile(0, 0), Tile(0, 1, 44)):
                    for digest in decode_tile(tile, parts[tile]):
                        hasher.add(digest)
                # The edge is read from the tiles; the full tile's root stands in the tile above it.
                return hasher.root == tree.root() and root(300, tile_reader(300, parts.__getitem__)) == tree.root()
        decode_tile(Tile(0, 0), data)
        return False

    return Target(seeds, (hashes[0], hashes[1], bytes(32)), read)


def _entry_bundles() -> Target:
    """Taken: other entries under the same root."""
    entries = [b"entry %d" % number * (1 + number % 5) for number in range(40)]
    wanted = Tree(map(leaf_hash, entries)).root()

    def read(data: bytes) -> bool:
        hasher = RootHasher()
        for entry in decode_bundle(Tile(None, 0, 40), data):
            hasher.add(leaf_hash(entry))
        return hasher.root == wanted

    return Target((encode_bundle(entries),), (b"\x00\x00", b"\xff\xff", b"\x00\x07"), read)


def _proofs() -> Target:
    """Taken: a proof that differs in more than what no one vouches for, and yet verifies."""
    tree = Tree(leaf_hash(b"%d" % number) for number in range(21))
    seeds = tuple(
        TlogProof(index, inclusion_proof(index, 21, tree.read), _note(21, tree.root()), extra).to_bytes()
        for index, extra in ((0, b""), (7, b"more"), (20, b""))
    )
    good = {(proof.index, proof.hashes) for proof in map(TlogProof.from_bytes, seeds)}

    def read(data: bytes) -> bool:
        proof = TlogProof.from_bytes(data)
        for index in (0, 7, 20):
            try:
                proof.verify(tree.read(0, index), POLICY)
            except CloisterError:
                continue
            return (proof.index, proof.hashes) not in good or proof.index != index or data in seeds
        proof.verify(tree.read(0, 0), POLICY)
        return False

    return Target(seeds, (b"index ", b"extra ", b"\n\n", b"c2sp.org/tlog-proof@v1\n"), read)


def _policies() -> Target:
    """Taken: bytes that are not those of the policy that they are read as."""
    seeds = (POLICY.to_bytes(),)

    def read(data: bytes) -> bool:
        return WitnessPolicy.from_bytes(data).to_bytes() != data or data in seeds

    return Target(seeds, (b'"quorum":', b'"log":', b'"witnesses":', LOG.text.encode(), b"[", b"]", b","), read)


def _envelopes() -> Target:
    """Taken: any envelope but a good one from which the trusted key's payload comes."""
    key, other = SigningKey.from_seed(b"k" * 32), SigningKey.from_seed(b"o" * 32)
    kind = payload_type("study")
    documents = [{"study": "heart", "epsilon": 0.5, "sites": ["a", "b"]}, {"x": "é"}]
    seeds = tuple(seal(kind, document, key, other).to_bytes() for document in documents)

    def read(data: bytes) -> bool:
        document, _ = open_json(Envelope.from_bytes(data), kind, {key.public.key_id: key.public})
        return document not in documents or data in seeds  # the other key is not trusted: its line may change

    return Target(
        seeds, (b'"payload":', b'"payloadType":', b'"signatures":', b'"keyid":', b'"sig":', b"{}", b"[]"), read
    )


def _requests() -> Target:
    """Taken: another request, signed by its own key. White space around the armour changes nothing."""
    key = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-a")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, None)
    seeds, der = (request.public_bytes(Encoding.PEM),), request.public_bytes(Encoding.DER)

    def read(data: bytes) -> bool:
        text = data.decode("latin-1")
        request_key(text)
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER) != der or data in seeds

    return Target(
        seeds, (b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n", b"\n"), read
    )


PACK = b"""pack: trial
version: 2026.11.1
title: A pack for trying
valid_from: 2026-01-01
scopes:
- {gates: [release], citation: Article One, facts: [plan.sites], when: "plan.sites.exists(s, s.jurisdiction == 'EU')"}
rules:
- id: T01
  citation: Article One
  gates: [release]
  valid_from: 2026-01-01
  facts: [release.epsilon, plan.sites]
  require: release.epsilon <= params.epsilon_ceiling && plan.sites.all(s, s.patients > 5 && s.name.matches('^[a-z]+$'))
  offenders: plan.sites.filter(s, s.patients <= 5).map(s, string(s.name))
  effect: deny
  message: "Too large: {release.epsilon}, {offenders}."
  remedy: Ask for a smaller one.
"""


def _packs() -> Target:
    """Taken: a document with the digest of a good one. A changed one that is a pack still decides without a crash."""
    policy, documents = builtin_policy(), builtin_packs()
    case = load_cases(b"pack: gdpr\ncases:\n- {rule: G04, gate: release, expect: passed}\n", documents["cases/base"])[0]

    def read(data: bytes) -> bool:
        loaded = load_pack(data, policy.catalogue, policy.parameters.schema)
        for gate in ("release", "round"):
            evaluate(gate, case.facts, [loaded], policy.parameters, now=NOW)
        return loaded.digest == sha256_hex(PACK)

    words = (
        b"plan.sites", b"&a ", b"*a", b"!!python/object ", b"<<: ",
        b".all(s, ", b".map(s, ", b".exists(s, ", b"size(", b"'", b" == ", b" && ", b"!",
        b"- ", b": ", b"|", b">",
        b"params.epsilon_ceiling", b"now", b"timestamp(", b"1/0",
        b"effect: warn",
        b".matches('(a+)+$')", b"9223372036854775807", b"double(", b"{", b"}", b"[", b"]", b"\n", b"  ",
    )  # fmt: skip
    return Target((PACK,), words, read)


def _entries() -> list[tuple[AuditEvent, bytes | None]]:
    digest = "sha256:" + "5" * 64
    event = AuditEvent(
        event=EventType.ROUND_COMMITTED, at="2026-11-23T00:00:00Z", actor="coordinator", subject="study:heart",
        digests={"model": digest, "plan": digest}, numbers={"epsilon": 0.25, "round": 3}, groups={"sites": ("a", "b")},
    )  # fmt: skip
    body = canonical({"name": "Ada", "reason": "needed: é"})
    told = AuditEvent(
        event=EventType.PERSON_INVITED, at="2026-11-23T00:00:00Z", actor="coordinator", subject="ada",
        payload=payload_hash(SALT, body),
    )  # fmt: skip
    put = AuditEvent(
        event=EventType.SITE_ENROLLED, at="2026-11-23T00:00:00Z", actor="coordinator", subject="site:a",
        digests={"witness_policy": POLICY.digest},
    )  # fmt: skip
    return [(event, None), (told, body), (put, None)]


def _audit_bundles() -> tuple[Target, Target]:
    """Whole archives, and entries alone. Taken: any other bundle that verifies, but for an erased payload."""
    entries = _entries()
    tree = Tree(leaf_hash(event.leaf()) for event, _ in entries)
    lines = [encode_line(at, event.leaf(), body, SALT if body else None) for at, (event, body) in enumerate(entries)]
    files = {
        "entries.jsonl": b"".join(lines),
        "checkpoint": _note(len(entries), tree.root()),
        "witness_policy.json": POLICY.to_bytes(),
        "log.vkey": LOG.text.encode() + b"\n",
    }
    seeds = (pack(files, AUDIT_FILES),)
    erased = b"".join(encode_line(at, event.leaf()) for at, (event, _) in enumerate(entries))

    def read(data: bytes) -> bool:
        opened = unpack(data, AUDIT_FILES)
        return verify_bundle(opened).verified and opened["entries.jsonl"] != erased

    def read_entries(data: bytes) -> bool:
        return verify_bundle({**files, "entries.jsonl": data}).verified and data != erased

    words = (
        b'"index":',
        b'"leaf":{',
        b'"payload":',
        b'"salt":"',
        b"\n",
        b'"version":1',
        b'"epsilon":',
        b"{}",
        b",",
        b"e",
    )
    return Target(seeds, (*words, b"ustar"), read), Target((files["entries.jsonl"],), words, read_entries)


def _containers() -> Target:
    """Taken: bytes that are not the one container of the files read from it."""
    names = ("subject.json", "model.bin")
    seeds = (pack({names[0]: b"{}", names[1]: bytes(700)}, names),)

    def read(data: bytes) -> bool:
        return pack(unpack(data, names), names) != data or data in seeds

    return Target(seeds, (b"ustar", b"subject.json", b"model.bin", b"00000000000", b"\x00" * 512), read)
