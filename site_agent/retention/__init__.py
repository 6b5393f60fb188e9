"""Retention at the hospital: what lies here of studies, when it must go, its wiping, and leaving."""
