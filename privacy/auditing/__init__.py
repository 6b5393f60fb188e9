"""Empirical audits: whether the code keeps the promise of the accounting, and what a released model gives away."""
