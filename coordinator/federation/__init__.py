"""Flower at the coordinator: the SuperLink process, the gateway in front of it, and the exchange of opaque packets.

Nothing outside this folder knows Flower (flwr 1.41). Importing it turns Flower's telemetry and update check off
for the whole process, before any of its modules can read those settings.
"""

import logging
import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_LOG_LEVEL"] = "WARNING"
logging.getLogger("flwr").setLevel(logging.WARNING)
