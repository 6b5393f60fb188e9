"""What an idle agent must hold in memory because of Flower, and no more."""

from __future__ import annotations

import subprocess
import sys


def test_the_sites_half_loads_no_torch_no_web_framework_and_stays_quiet() -> None:
    script = (
        "import logging, os, sys, site_agent.federation.connection\n"
        "heavy = {'torch', 'fastapi', 'starlette', 'uvicorn', 'sqlalchemy', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from flwr.supercore import telemetry\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '0' and os.environ['FLWR_DISABLE_UPDATE_CHECK'] == '1'\n"
        "from flwr.supercore.logger import console_handler\n"
        "assert console_handler.level == logging.WARNING\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
