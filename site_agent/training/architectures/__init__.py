"""The model families that a site can train, each named by the plan and built here: never code from the wire."""
