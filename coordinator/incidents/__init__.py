"""Incidents: whoever opens one freezes a study or a site; two people close it, once its duties are settled."""
