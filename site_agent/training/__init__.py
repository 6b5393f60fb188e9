"""One private contribution per round, charged to the patients before anything leaves."""
