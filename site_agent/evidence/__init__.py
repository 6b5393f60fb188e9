"""What the hospital has on record: its attested safeguards, its agreements, tests and trainings."""
