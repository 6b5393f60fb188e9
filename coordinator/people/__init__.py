"""People at the coordinator: one role and one Ed25519 key each; sessions are proved by that key, never a password."""
