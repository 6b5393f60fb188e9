"""Studies: proposal, policy decision, plan, the sites' consent, start and stop."""

import logging

# dp-accounting tells at length which Renyi orders it leaves out while it looks for a bracket; nobody can act on it.
logging.getLogger("absl").setLevel(logging.ERROR)
