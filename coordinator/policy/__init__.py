"""The policy that is in force: who proposes and activates a set of packs, and what was decided by it."""
