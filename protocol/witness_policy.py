"""Which log is trusted, which witnesses watch it, and how many of them must have cosigned.

The text form is the part of https://c2sp.org/tlog-policy that one log and one group of witnesses need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.canonical import JsonValue, canonical, digest, parse
from protocol.checkpoint import COSIGNER_TYPES, Checkpoint, open_checkpoint
from protocol.errors import Malformed, VerificationFailed
from protocol.note import KeyType, VerifierKey

MAX_WITNESSES = 99  # with the log's own signature, what fits in a note

_GROUP = "federation"
_RESERVED = frozenset({_GROUP, "none"})


def required_quorum(witnesses: int) -> int:
    """The smallest q > (n + f) / 2 with f = floor((n - 1) / 3): any two quorums share an honest witness.

    1 -> 1, 2 -> 2, 3 -> 2, 4 -> 3, 7 -> 5. Raises Malformed for n < 1.
    """
    if witnesses < 1:
        raise Malformed("A witness policy has no witness.", "Name at least one witness.")
    faulty = (witnesses - 1) // 3
    return (witnesses + faulty) // 2 + 1


@dataclass(frozen=True, slots=True)
class WitnessPolicy:
    """The log's key (type 1), its witnesses' keys (types 4 and 6; kept sorted by name) and the quorum.

    Raises Malformed for another type of key, one name or one public key used twice (the log's key included: one key
    is one witness), and a quorum under `required_quorum` or over the number of witnesses.
    """

    log: VerifierKey
    witnesses: tuple[VerifierKey, ...]
    quorum: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "witnesses", tuple(sorted(self.witnesses, key=lambda key: key.name)))
        count, least = len(self.witnesses), required_quorum(len(self.witnesses))
        names = {witness.name for witness in self.witnesses}
        if self.log.type is not KeyType.ED25519:
            raise Malformed("The policy's log key is of the wrong type.", "Use the log's Ed25519 key (type 1).")
        if any(witness.type not in COSIGNER_TYPES for witness in self.witnesses):
            raise Malformed("A witness key is of the wrong type.", "Use a cosigner key (type 4 or 6).")
        if len(names) != count or names & _RESERVED:
            raise Malformed("Two witnesses have one name, or one is reserved.", "Name each witness once.")
        if len({key.public for key in (self.log, *self.witnesses)}) != count + 1:
            raise Malformed("One key stands under two names.", "Give every witness, and the log, its own key.")
        if count > MAX_WITNESSES:
            raise Malformed(f"The policy has {count} witnesses.", f"Name at most {MAX_WITNESSES}.")
        if not least <= self.quorum <= count:
            raise Malformed(f"A quorum of {self.quorum} is not safe for {count} witnesses.", f"Use {least} to {count}.")

    def accept(self, data: bytes) -> Checkpoint:
        """The checkpoint in a note that this log signed and a quorum cosigned.

        Raises what `open_checkpoint` raises, and VerificationFailed when fewer than the quorum cosigned.
        """
        checkpoint = open_checkpoint(data, self.log, self.witnesses)
        if not self.satisfied(checkpoint):
            raise VerificationFailed(
                f"{len(checkpoint.cosigners)} of {len(self.witnesses)} witnesses cosigned; {self.quorum} must.",
                "Wait for more witnesses, or find out why they refuse.",
            )
        return checkpoint

    def satisfied(self, checkpoint: Checkpoint) -> bool:
        """Whether a quorum of these witnesses cosigned a checkpoint that was opened with this policy's keys."""
        names = {witness.name for witness in self.witnesses}
        return checkpoint.origin == self.log.name and len(names & checkpoint.cosigners.keys()) >= self.quorum

    def to_document(self) -> dict[str, JsonValue]:
        """{"log": vkey, "quorum": int, "witnesses": [vkey, ...] sorted by name}."""
        return {
            "log": self.log.text,
            "quorum": self.quorum,
            "witnesses": [witness.text for witness in self.witnesses],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> WitnessPolicy:
        """The policy in the form that `to_document` gives. Raises Malformed for any other."""
        match dict(document):
            case {"log": str(log), "quorum": int(quorum), "witnesses": list(keys), **rest} if not rest:
                if isinstance(quorum, bool) or not all(isinstance(key, str) for key in keys):
                    raise Malformed("The witness policy's fields are of the wrong types.", "Send vkeys and a number.")
                policy = cls(VerifierKey.parse(log), tuple(map(VerifierKey.parse, keys)), quorum)
            case _:
                raise Malformed("The document is not a witness policy.", "Send log, quorum and witnesses.")
        if policy.to_document() != document:
            raise Malformed("The policy's witnesses are not in order.", "Sort them by name.")
        return policy

    def to_bytes(self) -> bytes:
        """The document in canonical JSON."""
        return canonical(self.to_document())

    @classmethod
    def from_bytes(cls, data: bytes) -> WitnessPolicy:
        """The policy in the bytes that `to_bytes` gives. Raises Malformed for any other."""
        document = parse(data)
        if not isinstance(document, dict) or canonical(document) != data:
            raise Malformed("The witness policy is not a canonical JSON object.", "Send it unchanged.")
        return cls.from_document(document)

    @property
    def digest(self) -> str:
        """The digest of the canonical document."""
        return digest(self.to_document())

    def to_text(self) -> str:
        """The policy as a C2SP tlog-policy file."""
        witnesses = [f"witness {witness.name} {witness.text}\n" for witness in self.witnesses]
        names = " ".join(witness.name for witness in self.witnesses)
        group = f"group {_GROUP} {self.quorum} {names}\nquorum {_GROUP}\n"
        return "".join([f"log {self.log.text}\n", *witnesses, group])

    @classmethod
    def from_text(cls, text: str) -> WitnessPolicy:
        """The policy in a tlog-policy file of the shape that `to_text` gives; comments and blank lines may be added.

        Raises Malformed for any other shape, such as nested groups, several logs or URLs.
        """
        lines = [line.split() for line in text.split("\n")]
        lines = [words for words in lines if words and not words[0].startswith("#")]
        log, quorum, witnesses = "", "", []
        for words in lines:
            match words:
                case ["log", vkey]:
                    log = vkey
                case ["witness", _, vkey]:
                    witnesses.append(VerifierKey.parse(vkey))
                case ["group", _, threshold, *_]:
                    quorum = threshold
        if not (quorum.isascii() and quorum.isdecimal() and len(quorum) <= 3):
            raise _unread()
        policy = cls(VerifierKey.parse(log), tuple(witnesses), int(quorum))
        # Whatever the loop passed over or read loosely shows here as a difference.
        if lines != [line.split() for line in policy.to_text().split("\n")[:-1]]:
            raise _unread()
        return policy


def _unread() -> Malformed:
    return Malformed(
        "The text is not a witness policy.", "Give one log, its witnesses by name, one group of them, and the quorum."
    )
