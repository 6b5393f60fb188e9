"""Every table of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "denied_proposal",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("submitter", sa.String(), nullable=False),
        sa.Column("proposal", sa.LargeBinary(), nullable=False),
        sa.Column("proposal_digest", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("proposed_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_denied_proposal")),
    )
    op.create_index(op.f("ix_denied_proposal_proposed_at"), "denied_proposal", ["proposed_at"], unique=False)
    op.create_index(op.f("ix_denied_proposal_study"), "denied_proposal", ["study"], unique=False)
    op.create_table(
        "log_checkpoint",
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_log_checkpoint")),
    )
    op.create_table(
        "log_cosignature",
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("witness", sa.String(), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("size", "witness", name=op.f("pk_log_cosignature")),
    )
    op.create_table(
        "log_review",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_review")),
    )
    op.create_table(
        "log_entry",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("log_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_entry")),
        sa.UniqueConstraint("log_index", name=op.f("uq_log_entry_log_index")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "log_head",
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("assigned", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("origin", name=op.f("pk_log_head")),
    )
    op.create_table(
        "log_witness",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("joined_at", sa.String(), nullable=False),
        sa.Column("removed_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_log_witness")),
    )
    op.create_table(
        "log_policy",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("entry", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_policy")),
    )
    op.create_table(
        "person",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=True),
        sa.Column("invited_at", sa.String(), nullable=False),
        sa.Column("registered_at", sa.String(), nullable=True),
        sa.Column("organisation", sa.String(), nullable=True),
        sa.Column("certified_at", sa.String(), nullable=True),
        sa.Column("certified_by", sa.String(), nullable=True),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_person")),
        sa.UniqueConstraint("key", name=op.f("uq_person_key")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("submitter", sa.String(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("decision_digest", sa.String(), nullable=True),
        sa.Column("statement", sa.LargeBinary(), nullable=True),
        sa.Column("event", sa.LargeBinary(), nullable=True),
        sa.Column("entry", sa.Integer(), nullable=True),
        sa.Column("proof", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("review_until", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )
    op.create_index(op.f("ix_release_study"), "release", ["study"], unique=False)
    op.create_table(
        "site",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("invited_at", sa.String(), nullable=False),
        sa.Column("enrolled_at", sa.String(), nullable=True),
        sa.Column("identity", sa.String(), nullable=True),
        sa.Column("witness", sa.String(), nullable=True),
        sa.Column("serial", sa.String(), nullable=True),
        sa.Column("not_after", sa.String(), nullable=True),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_site")),
        sa.UniqueConstraint("identity", name=op.f("uq_site_identity")),
        sa.UniqueConstraint("node_id", name=op.f("uq_site_node_id")),
        sa.UniqueConstraint("witness", name=op.f("uq_site_witness")),
    )
    op.create_table(
        "spent_challenge",
        sa.Column("challenge_hash", sa.String(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("challenge_hash", name=op.f("pk_spent_challenge")),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("submitter", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("proposal", sa.LargeBinary(), nullable=False),
        sa.Column("proposal_digest", sa.String(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=True),
        sa.Column("plan_digest", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("forecast", sa.String(), nullable=False),
        sa.Column("proposed_at", sa.String(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=True),
        sa.Column("ended_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
    )
    op.create_index(op.f("ix_study_plan_digest"), "study", ["plan_digest"], unique=False)
    op.create_index(op.f("ix_study_proposed_at"), "study", ["proposed_at"], unique=False)
    op.create_index(op.f("ix_study_state"), "study", ["state"], unique=False)
    op.create_index(op.f("ix_study_submitter"), "study", ["submitter"], unique=False)
    op.create_table(
        "candidate",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("weights_digest", sa.String(), nullable=False),
        sa.Column("rounds_digest", sa.String(), nullable=False),
        sa.Column("evaluation", sa.String(), nullable=False),
        sa.Column("histogram", sa.String(), nullable=False),
        sa.Column("epsilon", sa.String(), nullable=False),
        sa.Column("membership", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_candidate_study_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_candidate")),
    )
    op.create_table(
        "exploration",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("result_digest", sa.String(), nullable=False),
        sa.Column("completed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_exploration_study_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_exploration")),
    )
    op.create_table(
        "noised_sum",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("contributed", sa.String(), nullable=False),
        sa.Column("total", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_noised_sum_study_study")),
        sa.PrimaryKeyConstraint("study", "phase", "round", name=op.f("pk_noised_sum")),
    )
    op.create_table(
        "tuned_run",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("report", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_tuned_run_study_study")),
        sa.PrimaryKeyConstraint("study", "run", name=op.f("pk_tuned_run")),
    )
    op.create_table(
        "key_setup",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("cohort", sa.String(), nullable=False),
        sa.Column("joined", sa.String(), nullable=False),
        sa.Column("transcript", sa.String(), nullable=True),
        sa.Column("established_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_key_setup_study_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_key_setup")),
    )
    op.create_table(
        "model_check",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("undone", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("fell", sa.Boolean(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=True),
        sa.Column("velocity", sa.LargeBinary(), nullable=True),
        sa.Column("average", sa.LargeBinary(), nullable=True),
        sa.Column("second", sa.LargeBinary(), nullable=True),
        sa.Column("averaged", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_model_check_study_study")),
        sa.PrimaryKeyConstraint("study", "round", name=op.f("pk_model_check")),
    )
    op.create_table(
        "model_state",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("velocity", sa.LargeBinary(), nullable=False),
        sa.Column("average", sa.LargeBinary(), nullable=False),
        sa.Column("averaged", sa.Integer(), nullable=False),
        sa.Column("second", sa.LargeBinary(), nullable=True),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_model_state_study_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_model_state")),
    )
    op.create_table(
        "local_credential",
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("totp", sa.LargeBinary(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("pending_password", sa.String(), nullable=True),
        sa.Column("pending_totp", sa.LargeBinary(), nullable=True),
        sa.Column("pending_at", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name=op.f("fk_local_credential_person_person")),
        sa.PrimaryKeyConstraint("person", name=op.f("pk_local_credential")),
    )
    op.create_table(
        "passkey",
        sa.Column("credential", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name=op.f("fk_passkey_person_person")),
        sa.PrimaryKeyConstraint("credential", name=op.f("pk_passkey")),
        sa.UniqueConstraint("key", name=op.f("uq_passkey_key")),
    )
    op.create_index(op.f("ix_passkey_person"), "passkey", ["person"], unique=False)
    op.create_table(
        "federated_identity",
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name=op.f("fk_federated_identity_person_person")),
        sa.PrimaryKeyConstraint("person", name=op.f("pk_federated_identity")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_federated_identity_issuer_subject")),
    )
    op.create_table(
        "person_invitation",
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.Column("used_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name=op.f("fk_person_invitation_person_person")),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_person_invitation")),
    )
    op.create_index(op.f("ix_person_invitation_person"), "person_invitation", ["person"], unique=False)
    op.create_table(
        "person_session",
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("seen_at", sa.String(), nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("medium", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["person"], ["person.name"], name=op.f("fk_person_session_person_person")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_person_session")),
    )
    op.create_index(op.f("ix_person_session_person"), "person_session", ["person"], unique=False)
    op.create_table(
        "plan_approval",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_plan_approval_study_study")),
        sa.PrimaryKeyConstraint("study", "person", name=op.f("pk_plan_approval")),
    )
    op.create_table(
        "release_challenge",
        sa.Column("nonce", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.Column("used_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_challenge_release_release")),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_release_challenge")),
    )
    op.create_index(op.f("ix_release_challenge_release"), "release_challenge", ["release"], unique=False)
    op.create_table(
        "release_file",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_file_release_release")),
        sa.PrimaryKeyConstraint("release", "name", name=op.f("pk_release_file")),
    )
    op.create_table(
        "release_installation",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("installed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_installation_release_release")),
        sa.PrimaryKeyConstraint("release", "site", name=op.f("pk_release_installation")),
    )
    op.create_table(
        "dossier_removal",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("asked_role", sa.String(), nullable=False),
        sa.Column("asked_at", sa.String(), nullable=False),
        sa.Column("confirmed_by", sa.String(), nullable=True),
        sa.Column("confirmed_role", sa.String(), nullable=True),
        sa.Column("removed_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("release", name=op.f("pk_dossier_removal")),
    )
    op.create_index(op.f("ix_dossier_removal_study"), "dossier_removal", ["study"], unique=False)
    op.create_table(
        "serving_change",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("server", sa.String(), nullable=True),
        sa.Column("told_at", sa.String(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_serving_change_release_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_serving_change")),
    )
    op.create_index(op.f("ix_serving_change_release"), "serving_change", ["release"], unique=False)
    op.create_table(
        "release_vote",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("subject_digest", sa.String(), nullable=False),
        sa.Column("approve", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("decided_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_vote_release_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_vote")),
        sa.UniqueConstraint("release", "person", name=op.f("uq_release_vote_release_person")),
    )
    op.create_index(op.f("ix_release_vote_release"), "release_vote", ["release"], unique=False)
    op.create_table(
        "release_waiver",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("pack", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("granted_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_waiver_release_release")),
        sa.PrimaryKeyConstraint("release", "pack", "rule", name=op.f("pk_release_waiver")),
    )
    op.create_table(
        "release_veto",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("vetoed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_release_veto_release_release")),
        sa.PrimaryKeyConstraint("release", "site", name=op.f("pk_release_veto")),
    )
    op.create_table(
        "broken_glass",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("broken_at", sa.String(), nullable=False),
        sa.Column("reviewed_by", sa.String(), nullable=True),
        sa.Column("review", sa.String(), nullable=True),
        sa.Column("reviewed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["release"], ["release.id"], name=op.f("fk_broken_glass_release_release")),
        sa.PrimaryKeyConstraint("release", name=op.f("pk_broken_glass")),
    )
    op.create_table(
        "round_attempt",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("cohort", sa.String(), nullable=False),
        sa.Column("contributed", sa.String(), nullable=False),
        sa.Column("excluded", sa.String(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("issued_at", sa.String(), nullable=False),
        sa.Column("closed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_round_attempt_study_study")),
        sa.PrimaryKeyConstraint("study", "phase", "round", "attempt", name=op.f("pk_round_attempt")),
    )
    op.create_index(op.f("ix_round_attempt_sequence"), "round_attempt", ["sequence"], unique=False)
    op.create_table(
        "site_certificate",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("issued_at", sa.String(), nullable=False),
        sa.Column("not_after", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_site_certificate_site_site")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_site_certificate")),
    )
    op.create_index(op.f("ix_site_certificate_identity"), "site_certificate", ["identity"], unique=False)
    op.create_index(op.f("ix_site_certificate_site"), "site_certificate", ["site"], unique=False)
    op.create_table(
        "site_dataset",
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("schema_digest", sa.String(), nullable=False),
        sa.Column("snapshot", sa.String(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("held_out", sa.Integer(), nullable=False),
        sa.Column("registered_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_site_dataset_site_site")),
        sa.PrimaryKeyConstraint("site", "name", name=op.f("pk_site_dataset")),
    )
    op.create_index(op.f("ix_site_dataset_schema_digest"), "site_dataset", ["schema_digest"], unique=False)
    op.create_table(
        "site_invitation",
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.Column("used_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_site_invitation_site_site")),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_site_invitation")),
    )
    op.create_index(op.f("ix_site_invitation_site"), "site_invitation", ["site"], unique=False)
    op.create_table(
        "site_statement",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("identity", sa.String(), nullable=False),
        sa.Column("made_at", sa.String(), nullable=False),
        sa.Column("received_at", sa.String(), nullable=False),
        sa.Column("clock_skew", sa.Float(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["site"], ["site.name"], name=op.f("fk_site_statement_site_site")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_site_statement")),
    )
    op.create_index(op.f("ix_site_statement_site"), "site_statement", ["site"], unique=False)
    op.create_table(
        "study_wait",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("sites", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("remedy", sa.String(), nullable=False),
        sa.Column("since", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_study_wait_study_study")),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_study_wait")),
    )
    op.create_table(
        "study_exclusion",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("asked_role", sa.String(), nullable=False),
        sa.Column("asked_at", sa.String(), nullable=False),
        sa.Column("confirmed_by", sa.String(), nullable=True),
        sa.Column("confirmed_role", sa.String(), nullable=True),
        sa.Column("confirmed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_study_exclusion_study_study")),
        sa.PrimaryKeyConstraint("study", "site", name=op.f("pk_study_exclusion")),
    )
    op.create_table(
        "study_consent",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("plan_digest", sa.String(), nullable=False),
        sa.Column("consent", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_study_consent_study_study")),
        sa.PrimaryKeyConstraint("study", "site", name=op.f("pk_study_consent")),
    )
    op.create_table(
        "study_round",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("invited", sa.String(), nullable=False),
        sa.Column("contributed", sa.String(), nullable=False),
        sa.Column("excluded", sa.String(), nullable=False),
        sa.Column("norm", sa.Float(), nullable=True),
        sa.Column("model_digest", sa.String(), nullable=False),
        sa.Column("epsilon", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("committed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_study_round_study_study")),
        sa.PrimaryKeyConstraint("study", "phase", "round", name=op.f("pk_study_round")),
    )
    op.create_table(
        "evidence",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("record", sa.String(), nullable=False),
        sa.Column("recorded_by", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_evidence")),
    )
    op.create_index(op.f("ix_evidence_scope"), "evidence", ["scope"], unique=False)
    op.create_index(op.f("ix_evidence_subject"), "evidence", ["subject"], unique=False)
    op.create_table(
        "model_review",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("causes", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("notice", sa.LargeBinary(), nullable=False),
        sa.Column("opened_at", sa.String(), nullable=False),
        sa.Column("grounds", sa.String(), nullable=True),
        sa.Column("closed_by", sa.String(), nullable=True),
        sa.Column("closed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["study"], ["study.id"], name=op.f("fk_model_review_study_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_review")),
    )
    op.create_index(op.f("ix_model_review_study"), "model_review", ["study"], unique=False)
    op.create_index(op.f("ix_model_review_state"), "model_review", ["state"], unique=False)
    op.create_table(
        "incident",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("aware_at", sa.String(), nullable=False),
        sa.Column("opened_by", sa.String(), nullable=False),
        sa.Column("opened_at", sa.String(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=True),
        sa.Column("authority", sa.String(), nullable=True),
        sa.Column("individuals", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("closed_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incident")),
    )
    for column in ("scope", "about", "state"):
        op.create_index(op.f(f"ix_incident_{column}"), "incident", [column], unique=False)
    op.create_table(
        "incident_closing",
        sa.Column("incident", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("facts", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("said_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["incident"], ["incident.id"], name=op.f("fk_incident_closing_incident_incident")),
        sa.PrimaryKeyConstraint("incident", "person", "facts", name=op.f("pk_incident_closing")),
    )
    op.create_table(
        "payload_pruning",
        sa.Column(
            "minimum_index",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("erased", sa.Integer(), nullable=False),
        sa.Column("pruned_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("minimum_index", name=op.f("pk_payload_pruning")),
    )
    op.create_table(
        "payload_erasure",
        sa.Column(
            "log_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("ground", sa.String(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("asked_role", sa.String(), nullable=False),
        sa.Column("asked_at", sa.String(), nullable=False),
        sa.Column("confirmed_by", sa.String(), nullable=True),
        sa.Column("confirmed_role", sa.String(), nullable=True),
        sa.Column("erased_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("log_index", name=op.f("pk_payload_erasure")),
    )
    op.create_table(
        "policy_set",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("proposer", sa.String(), nullable=True),
        sa.Column("proposer_key", sa.String(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("proposed_at", sa.String(), nullable=False),
        sa.Column("activation", sa.LargeBinary(), nullable=True),
        sa.Column("activated_at", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_policy_set")),
    )
    op.create_index(op.f("ix_policy_set_number"), "policy_set", ["number"], unique=False)
    op.create_index(op.f("ix_policy_set_policy"), "policy_set", ["policy"], unique=False)
    op.create_index(op.f("ix_policy_set_state"), "policy_set", ["state"], unique=False)
    op.create_table(
        "policy_document",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_policy_document")),
    )
    op.create_table(
        "policy_vote",
        sa.Column("set_digest", sa.String(), nullable=False),
        sa.Column("person", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("registered_at", sa.String(), nullable=False),
        sa.Column("activate", sa.Boolean(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("decided_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["set_digest"], ["policy_set.digest"], name=op.f("fk_policy_vote_set_digest_policy_set")
        ),
        sa.PrimaryKeyConstraint("set_digest", "person", name=op.f("pk_policy_vote")),
    )
    op.create_table(
        "policy_decision",
        sa.Column("entry", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["entry"], ["log_entry.id"], name=op.f("fk_policy_decision_entry_log_entry")),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_policy_decision")),
    )
    op.create_index(op.f("ix_policy_decision_gate"), "policy_decision", ["gate"], unique=False)
    op.create_index(op.f("ix_policy_decision_subject"), "policy_decision", ["subject"], unique=False)


def downgrade() -> None:
    """Drop them."""
    op.drop_index(op.f("ix_model_review_state"), table_name="model_review")
    op.drop_index(op.f("ix_model_review_study"), table_name="model_review")
    op.drop_table("model_review")
    op.drop_table("payload_erasure")
    op.drop_table("payload_pruning")
    op.drop_table("incident_closing")
    for column in ("state", "about", "scope"):
        op.drop_index(op.f(f"ix_incident_{column}"), table_name="incident")
    op.drop_table("incident")
    op.drop_index(op.f("ix_policy_decision_subject"), table_name="policy_decision")
    op.drop_index(op.f("ix_policy_decision_gate"), table_name="policy_decision")
    op.drop_table("policy_decision")
    op.drop_table("policy_vote")
    op.drop_table("policy_document")
    op.drop_index(op.f("ix_policy_set_state"), table_name="policy_set")
    op.drop_index(op.f("ix_policy_set_policy"), table_name="policy_set")
    op.drop_index(op.f("ix_policy_set_number"), table_name="policy_set")
    op.drop_table("policy_set")
    op.drop_index(op.f("ix_evidence_subject"), table_name="evidence")
    op.drop_index(op.f("ix_evidence_scope"), table_name="evidence")
    op.drop_table("evidence")
    op.drop_table("study_round")
    op.drop_table("study_consent")
    op.drop_table("study_exclusion")
    op.drop_table("study_wait")
    op.drop_index(op.f("ix_site_statement_site"), table_name="site_statement")
    op.drop_table("site_statement")
    op.drop_index(op.f("ix_site_invitation_site"), table_name="site_invitation")
    op.drop_table("site_invitation")
    op.drop_index(op.f("ix_site_dataset_schema_digest"), table_name="site_dataset")
    op.drop_table("site_dataset")
    op.drop_index(op.f("ix_site_certificate_site"), table_name="site_certificate")
    op.drop_index(op.f("ix_site_certificate_identity"), table_name="site_certificate")
    op.drop_table("site_certificate")
    op.drop_index(op.f("ix_round_attempt_sequence"), table_name="round_attempt")
    op.drop_table("round_attempt")
    op.drop_table("broken_glass")
    op.drop_table("release_veto")
    op.drop_table("release_waiver")
    op.drop_index(op.f("ix_dossier_removal_study"), table_name="dossier_removal")
    op.drop_table("dossier_removal")
    op.drop_index(op.f("ix_serving_change_release"), table_name="serving_change")
    op.drop_table("serving_change")
    op.drop_index(op.f("ix_release_vote_release"), table_name="release_vote")
    op.drop_table("release_vote")
    op.drop_table("release_installation")
    op.drop_table("release_file")
    op.drop_index(op.f("ix_release_challenge_release"), table_name="release_challenge")
    op.drop_table("release_challenge")
    op.drop_table("plan_approval")
    op.drop_index(op.f("ix_person_session_person"), table_name="person_session")
    op.drop_table("person_session")
    op.drop_index(op.f("ix_person_invitation_person"), table_name="person_invitation")
    op.drop_table("person_invitation")
    op.drop_index(op.f("ix_passkey_person"), table_name="passkey")
    op.drop_table("passkey")
    op.drop_table("federated_identity")
    op.drop_table("local_credential")
    op.drop_table("model_state")
    op.drop_table("model_check")
    op.drop_table("key_setup")
    op.drop_table("tuned_run")
    op.drop_table("noised_sum")
    op.drop_table("exploration")
    op.drop_table("candidate")
    op.drop_index(op.f("ix_study_submitter"), table_name="study")
    op.drop_index(op.f("ix_study_state"), table_name="study")
    op.drop_index(op.f("ix_study_proposed_at"), table_name="study")
    op.drop_index(op.f("ix_study_plan_digest"), table_name="study")
    op.drop_table("study")
    op.drop_table("spent_challenge")
    op.drop_table("site")
    op.drop_index(op.f("ix_release_study"), table_name="release")
    op.drop_table("release")
    op.drop_table("person")
    op.drop_table("log_policy")
    op.drop_table("log_witness")
    op.drop_table("log_head")
    op.drop_table("log_review")
    op.drop_table("log_entry")
    op.drop_table("log_cosignature")
    op.drop_table("log_checkpoint")
    op.drop_index(op.f("ix_denied_proposal_study"), table_name="denied_proposal")
    op.drop_index(op.f("ix_denied_proposal_proposed_at"), table_name="denied_proposal")
    op.drop_table("denied_proposal")
