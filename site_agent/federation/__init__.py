"""Flower at a site: a connection to the coordinator's fleet path, over which opaque packets come and go.

No SuperNode, no app bundle and no code from the wire. Nothing outside this folder knows Flower (flwr 1.41).
Importing it turns Flower's telemetry and update check off before any of its modules can read those settings.
"""

import logging
import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_LOG_LEVEL"] = "WARNING"
logging.getLogger("flwr").setLevel(logging.WARNING)
