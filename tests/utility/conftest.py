"""The study of utility is a set of scripts, not a package: its folder is put on the path here."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "packaging" / "utility"))
