"""The long-running agent: follows the log, renews the certificate, and takes part in the studies that were granted.

The main thread asks for work and answers it; a second one is the witness, so that a long computation never keeps the
log waiting. Flower, NumPy and torch are imported when a study begins, torch only in the worker: an idle agent is small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Engine

from protocol.errors import CloisterError
from site_agent.backoff import LONGEST_BACKOFF, Backoff, jitter
from site_agent.clock import Clock, system_clock
from site_agent.cohort.leaving_out import apply_withdrawals
from site_agent.cohort.registration import register_pending
from site_agent.cohort.withdrawal import deliver_notices
from site_agent.consent.delivery import deliver
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import open_database, transaction
from site_agent.evidence.statement import send_if_due
from site_agent.incidents.report import deliver_reports
from site_agent.keystore import SiteKeys, load_keys
from site_agent.renewal import renew_if_due
from site_agent.serving.reports import deliver_serving
from site_agent.settings import SiteHome, SiteSettings, load_settings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.self_test import known
from site_agent.training.self_test import run as run_self_test
from site_agent.training.states import AttemptRefused
from site_agent.training.worker_client import WorkerClient
from site_agent.witness.cycle import LogMisbehaved, Witness

if TYPE_CHECKING:
    from site_agent.training.study_service import Link, StudyService

LOCK = "agent.lock"
WITNESS_SECONDS = 1.0
IDLE_FACTOR = 2.0
RENEWAL_SECONDS = 300.0
PAPERS_SECONDS = 30.0
ENDED = frozenset({"denied", "candidate", "completed", "failed", "stopped"})
_log = structlog.get_logger()


class AlreadyRunning(CloisterError):
    """Another agent has this home: two would compete for the same attempts."""

    code = "already-running"


class Agent:
    """One site's agent. `run` returns when `stop` is set.

    client: opens a connection to the coordinator. link: opens the way on which questions come; it raises
    CloisterError while there is none.
    """

    def __init__(
        self,
        settings: SiteSettings,
        keys: SiteKeys,
        engine: Engine,
        *,
        stop: threading.Event,
        client: Callable[[], CoordinatorClient],
        link: Callable[[], Link],
        worker: WorkerClient,
        clock: Clock = system_clock,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._engine = engine
        self._stop = stop
        self._open_client = client
        self._open_link = link
        self._worker = worker
        self._clock = clock
        self._store = BudgetStore(engine)
        self._studies: StudyService | None = None
        self._busy = threading.Event()
        self._tested = False
        self._papers_next = 0.0

    def run(self) -> None:
        """Work until `stop`. Trouble with the coordinator or the disk is logged and tried again, never raised."""
        witness = threading.Thread(target=self._follow_log, name="witness", daemon=True)
        witness.start()
        backoff = Backoff(self._settings.poll_seconds)
        _log.info("agent-started", site=self._settings.site)
        try:
            self._check_ledger()
            self._leave_out()
            self._check_engine()
            while not self._stop.is_set():
                try:
                    with self._open_client() as client:
                        self._ask_for_work(client, backoff)
                except CloisterError as error:
                    _log.warning("coordinator-trouble", code=error.code)
                    self._sign_off()
                    self._stop.wait(backoff.wait())
        finally:
            self._stop.set()
            self._sign_off()
            self._worker.close()
            witness.join(timeout=LONGEST_BACKOFF)
            _log.info("agent-stopped", site=self._settings.site)

    def _check_ledger(self) -> None:
        """Say so at once where the ledger was put back; the studies' keys are erased then. Every request is refused."""
        try:
            self._store.require_sound()
        except AttemptRefused as refused:
            _log.error("ledger-not-sound", code=refused.code.value)
        except CloisterError as error:
            _log.error("ledger-not-sound", code=error.code)

    def _leave_out(self) -> None:
        """End what a withdrawal was killed in, and take those that a database put back had forgotten. Until it is done
        every round on such a snapshot is refused."""
        try:
            replaced = apply_withdrawals(self._engine, self._settings.home, secret=self._keys.secret, now=self._clock())
            if replaced:
                _log.info("withdrawals-applied", snapshots=replaced)
        except CloisterError as error:
            _log.error("withdrawals-not-applied", code=error.code)

    def _check_engine(self) -> None:
        """Test the engine where this one has not passed here yet; every round is refused until it has."""
        try:
            with transaction(self._engine) as session:
                found = known(session)
            self._tested = found is not None
            if found is None or not found.passed:
                found = run_self_test(self._engine, self._worker, self._clock)
                self._worker.close()
                log = _log.info if found.passed else _log.error
                self._tested = bool(found.checks)  # one that failed is not tried again until the agent starts anew
                log("self-test", engine=found.engine.digest, version=found.engine.version, passed=found.passed)
        except CloisterError as error:
            _log.error("self-test-not-kept", code=error.code)

    def _ask_for_work(self, client: CoordinatorClient, backoff: Backoff) -> None:
        """Poll until stopped or for as long as one connection is kept (its certificate may have been renewed)."""
        until = time.monotonic() + RENEWAL_SECONDS
        while not self._stop.is_set() and time.monotonic() < until:
            active = _names(client.work().get("active"))
            backoff.reset()
            self._tell(client)
            if active:
                self._busy.set()
                if not self._tested:
                    self._check_engine()
                self._study_service().serve(active)
            else:
                self._busy.clear()
                self._sign_off()
                self._worker.close_if_idle()
                self._forget_ended(client)
                self._stop.wait(jitter(1.0, 1.25) * self._settings.poll_seconds)

    def _tell(self, client: CoordinatorClient) -> None:
        """Hand in what could not be handed in before. What the coordinator refuses keeps nothing else from it."""
        engine = self._engine
        waiting: tuple[tuple[str, Callable[[], Iterable[str]]], ...] = (
            ("incident-reported", lambda: deliver_reports(engine, client)),
            ("withdrawal-told", lambda: deliver_notices(engine, client)),
            ("answer-delivered", lambda: deliver(engine, client)),
            ("snapshot-registered", lambda: register_pending(engine, client, self._clock)),
            ("serving-told", lambda: deliver_serving(self._settings, engine, client, self._keys, self._clock)),
            ("papers-sent", lambda: self._send_papers(client)),
        )
        for told, hand_in in waiting:
            try:
                for what in hand_in():
                    _log.info(told, what=what)
            except CoordinatorRefused as error:
                _log.warning("not-accepted", kind=told, code=error.code)

    def _send_papers(self, client: CoordinatorClient) -> list[str]:
        """Looked at every half minute, so that a statement that is refused is not sent at each poll; its time."""
        if time.monotonic() < self._papers_next:
            return []
        self._papers_next = time.monotonic() + PAPERS_SECONDS
        receipt = send_if_due(self._settings, self._keys, self._engine, client, self._clock)
        return [] if receipt is None else [receipt.made_at]

    def _study_service(self) -> StudyService:
        """Made, and its code loaded, when the first study is active."""
        if self._studies is None:
            from site_agent.training.study_service import StudyService

            self._studies = StudyService(
                self._settings, self._keys, self._store, stop=self._stop, client=self._open_client,
                link=self._open_link, worker=self._worker, clock=self._clock,
            )  # fmt: skip
        return self._studies

    def _sign_off(self) -> None:
        if self._studies is not None:
            self._studies.sign_off()

    def _forget_ended(self, client: CoordinatorClient) -> None:
        """Erase the pair secrets of studies that are over, or from which this site was shut out."""
        held = self._store.studies_with_keys()
        if not held:
            return
        over = (item for item in client.studies() if item.get("state") in ENDED or item.get("shut_out") is True)
        ended = {str(item.get("study")) for item in over}
        for study in held:
            if study in ended:
                self._store.forget_keys(study)
                _log.info("keys-erased", study=study)

    # The log

    def _follow_log(self) -> None:
        """The witness' thread: a turn every second while a study runs, else every other poll."""
        backoff = Backoff(self._settings.poll_seconds)
        while not self._stop.is_set():
            try:
                with self._open_client() as client:
                    self._take_turns(Witness(self._settings, self._keys, self._engine, client, self._clock), backoff)
            except LogMisbehaved as error:
                _log.error("log-misbehaved", code=error.code)
                self._stop.wait(LONGEST_BACKOFF)
            except CloisterError as error:
                _log.warning("witness-trouble", code=error.code)
                self._stop.wait(backoff.wait())

    def _take_turns(self, witness: Witness, backoff: Backoff) -> None:
        until = time.monotonic() + RENEWAL_SECONDS
        self._renew()
        while not self._stop.is_set() and time.monotonic() < until:
            turn = witness.turn()
            backoff.reset()
            if turn.cosigned or turn.policy_changed:
                _log.info("log-followed", size=turn.size, cosigned=turn.cosigned, policy_changed=turn.policy_changed)
            pause = WITNESS_SECONDS if self._busy.is_set() else IDLE_FACTOR * self._settings.poll_seconds
            self._stop.wait(jitter(1.0, 1.25) * pause)

    def _renew(self) -> None:
        """Renew the certificate when due. Connections opened from now on use it."""
        issued = renew_if_due(self._settings, self._keys, self._clock)
        if issued is not None:
            _log.info("certificate-renewed", not_after=issued.not_after.isoformat())


def run(home: SiteHome, *, gpu: bool = True) -> None:
    """The agent of an enrolled site, until SIGTERM or SIGINT. Raises AlreadyRunning, NotEnrolled, KeysUnusable, ...."""
    configure_logging()
    settings = load_settings(home)
    keys = load_keys(home)
    stop = threading.Event()
    with _only_agent(home):
        engine = open_database(home)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        Agent(
            settings,
            keys,
            engine,
            stop=stop,
            client=lambda: CoordinatorClient(settings, keys),
            link=lambda: _fleet(settings, keys),
            worker=WorkerClient(
                home,
                gpu=gpu,
                site=settings.site,
                processes=settings.training_processes,
                megabytes=settings.training_megabytes,
                half=settings.half_precision,
            ),
        ).run()


def configure_logging() -> None:
    """One JSON line per event on stderr: names of events, identifiers, counts and codes; no data, no tracebacks."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _fleet(settings: SiteSettings, keys: SiteKeys) -> Link:
    from site_agent.training.study_service import fleet_connection

    return fleet_connection(settings, keys)


@contextlib.contextmanager
def _only_agent(home: SiteHome) -> Iterator[None]:
    descriptor = os.open(home.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"An agent already runs in {home.path}.", "Stop it first; one agent serves all studies of a site."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _names(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
