"""Whether a release is what its candidate gives, before people are asked to sign it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.releases.build import model_files
from coordinator.rounds.tables import Candidate
from protocol.canonical import sha256_hex
from protocol.evaluation import read_report
from protocol.membership import MembershipReport
from protocol.release import EpsilonStatement, ReleaseSubject
from protocol.study import StudyPlan


def faults(
    subject: ReleaseSubject,
    subject_digest: str,
    files: Mapping[str, bytes],
    plan: StudyPlan | None = None,
    candidate: Candidate | None = None,
) -> tuple[str, ...]:
    """What is wrong, as codes: the subject is not the one with this digest; a stored file is not the one in it; and
    with plan and candidate, what a file is built from it anew differs."""
    found = []
    if subject.digest != subject_digest:
        found.append("subject-digest")
    named = {entry.name: (entry.size, entry.sha256) for entry in subject.files}
    stored = {name: (len(content), sha256_hex(content)) for name, content in files.items()}
    found += [f"file:{name}" for name in sorted(named.keys() | stored.keys()) if named.get(name) != stored.get(name)]
    if plan is not None and candidate is not None and not found:
        built = model_files(
            plan,
            candidate.weights,
            EpsilonStatement.model_validate_json(candidate.epsilon),
            read_report(candidate.evaluation),
            None if candidate.membership is None else MembershipReport.model_validate_json(candidate.membership),
            intended_use=subject.intended_use,
            use_mode=subject.use_mode,
            claim_anonymous=subject.claim_anonymous,
        )
        found += [f"candidate:{name}" for name, content in built.items() if sha256_hex(content) != named[name][1]]
    return tuple(found)
