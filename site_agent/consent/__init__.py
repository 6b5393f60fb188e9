"""A person at the hospital answers a plan: the site judges it with its own rules and ledger, then signs."""
