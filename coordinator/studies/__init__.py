"""Studies: proposal, policy decision, plan, the sites' consent, start and stop."""
