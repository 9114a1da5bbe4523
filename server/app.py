"""The only place that wires things together: what `certmill authority` is made of, opened in one stack."""

import asyncio
import datetime as dt
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as package_version
from random import SystemRandom

from cryptography import x509
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from ocsp.lmdb_store import LmdbStore
from ocsp.presigner import Presigner
from ocsp.store import IssuerTag, issuer_tag
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.ocsp_response import Responder
from pkix.weak_keys import load_known_primes
from server.auth.clients import ClientRegistry
from server.batches.service import Batches
from server.clock import Clock, epoch
from server.config import Config
from server.ground import Ground
from server.home import Home, exclusive, write_file
from server.issuance.profile_files import read_profile_files
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService
from server.issuance.succession import Succession
from server.keys.certified import expected_keys, responder_certified
from server.keys.hierarchy import ISSUING, OCSP, ROOT, Hierarchy, HierarchyBuilder
from server.keys.own_certificates import OwnCertificates
from server.keys.refused_pins import RefusedPins
from server.linting.exceptions import documented_exceptions
from server.linting.linter import CertificateLinter
from server.linting.pool import LintPool
from server.linting.shapes import KnownShapes
from server.metrics import AuthorityMetrics
from server.milestones import Milestones, Step, unwatched
from server.preparing.frames import Begin
from server.preparing.preparer import Preparer
from server.preparing.workshop import Workshop
from server.revocation.crl_publisher import CrlPublisher
from server.revocation.service import RevocationService
from server.status.commitments import Commitments
from server.status.publisher import StatusPublisher
from server.status.reconciler import Reconciler
from server.status.refresher import Refresher
from server.status.storage_watch import StorageWatch
from server.storage.database import Database
from server.storage.place import place_of
from server.storage.presence import Identity, Presence, authority_id, store_identity
from signer_pool.errors import KeyMismatch
from signer_pool.lane_config import LaneConfig
from signer_pool.pool import SignerPool

_GIB = 2**30
_ROOT_CRL_VALIDITY = dt.timedelta(days=180)
_ROOT_CRL_INTERVAL = dt.timedelta(days=30)
_REPLACED = (
    f"; if it is {OCSP!r} and was replaced on purpose, remove it from every token: the next start makes another, "
    "with a certificate"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The opened parts of an authority."""

    config: Config
    home: Home
    clock: Clock
    logger: FilteringBoundLogger
    registry: CollectorRegistry
    metrics: AuthorityMetrics
    pool: SignerPool
    database: Database
    hierarchy: Hierarchy
    builder: HierarchyBuilder
    profiles: ProfileRegistry
    clients: ClientRegistry
    publisher: StatusPublisher
    issuance: IssuanceService
    batches: Batches
    revocation: RevocationService
    own: OwnCertificates
    crl_publishers: Sequence[CrlPublisher]
    refresher: Refresher
    reconciler: Reconciler
    commitments: Commitments
    presence: Presence
    storage: StorageWatch


@asynccontextmanager
async def open_parts(
    config: Config,
    lanes: Sequence[LaneConfig],
    *,
    clock: Clock,
    logger: FilteringBoundLogger,
    reached: Milestones = unwatched,
) -> AsyncIterator[Parts]:
    """Open everything, make what is missing of the hierarchy, and recover from a crash.

    The database is at the current schema. Raises `ServerError`, `SignerPoolError` or `OcspError`.
    """
    home = Home(config.home)
    registry = CollectorRegistry()
    metrics = AuthorityMetrics(registry)
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusive(home))
        # First, so that its processes load while everything else opens.
        lint_pool = await stack.enter_async_context(LintPool.of(config.lint, metrics=metrics, logger=logger))
        files = await stack.enter_async_context(_thread("files"))
        database = await stack.enter_async_context(_database(config, files))
        me = await asyncio.get_running_loop().run_in_executor(files, _identity, config)
        presence = await stack.enter_async_context(Presence(database, me, clock=clock, logger=logger))
        ground = Ground(
            database=database,
            clock=clock,
            metrics=metrics,
            logger=logger,
            authority=me.id,
            leadership=presence,
            reached=reached,
        )
        # From the look at the tokens' keys until all are certified: of several authorities one makes them.
        async with database.alone("start"):
            pool = await stack.enter_async_context(
                _signer_pool(config, lanes, files=files, registry=registry, ground=ground)
            )
            profiles = ProfileRegistry(database, clock)
            loop = asyncio.get_running_loop()
            await profiles.activate(await loop.run_in_executor(files, read_profile_files, home.profiles))
            builder = HierarchyBuilder(config=config, pool=pool, profiles=profiles, ground=ground)
            hierarchy = await builder.ensure()
        store = await stack.enter_async_context(
            LmdbStore(config.response_store, max_bytes=config.ocsp.store_max_gib * _GIB)
        )
        await asyncio.get_running_loop().run_in_executor(files, _publish_ca_certificates, home, hierarchy)
        await asyncio.get_running_loop().run_in_executor(files, load_known_primes)
        tag = issuer_tag(hierarchy.issuing.certificate_der)
        issuing = hierarchy.issuing
        register = partial(store.put_issuer, tag, sha1=issuing.hashes("sha1"), sha256=issuing.hashes("sha256"))
        presigner = await _presigner(
            config=config,
            builder=builder,
            issuing=hierarchy.issuing,
            pool=pool,
            tag=tag,
            clock=clock,
        )
        # From here on a token with another key for the responder is a wrong one again.
        await asyncio.get_running_loop().run_in_executor(files, responder_certified, home)
        metrics.responder_not_after.set(epoch(presigner.responder.certificate.not_valid_after_utc))
        publisher = StatusPublisher(issuer_label=ISSUING, presigner=presigner, store=store, ground=ground)
        issuing = hierarchy.issuing
        preparer = Preparer(issuing, backdate=dt.timedelta(seconds=config.issuance.backdate_s))
        issuance = await stack.enter_async_context(
            IssuanceService(
                issuer=hierarchy.issuing,
                issuer_label=ISSUING,
                key_label=ISSUING,
                pool=pool,
                publisher=publisher,
                settings=config.issuance,
                weights=config.weights,
                preparer=preparer,
                workshop=await _workshop(
                    stack, config, ground, preparer=preparer, issuer=hierarchy.issuing, profiles=profiles
                ),
                linter=await _linter(config, lint_pool, files, ground),
                checks=[Succession(ISSUING, grace_days=config.renewal.grace_days).check],
                ground=ground,
            )
        )
        issuing_crl = CrlPublisher(
            issuer=hierarchy.issuing,
            issuer_label=ISSUING,
            key_label=ISSUING,
            path=home.public / "crl" / "issuing.crl",
            files=files,
            pool=pool,
            validity=dt.timedelta(hours=config.crl.validity_h),
            interval=dt.timedelta(hours=config.crl.interval_h),
            debounce_s=config.crl.debounce_s,
            ground=ground,
        )
        root_crl = CrlPublisher(
            issuer=hierarchy.root,
            issuer_label=ROOT,
            key_label=ROOT,
            path=home.public / "crl" / "root.crl",
            files=files,
            pool=pool,
            validity=_ROOT_CRL_VALIDITY,
            interval=_ROOT_CRL_INTERVAL,
            debounce_s=config.crl.debounce_s,
            ground=ground,
        )
        clients = ClientRegistry(database, clock, issuer_label=ISSUING)
        batches = Batches(
            issuance=issuance,
            profiles=profiles,
            clients=clients,
            settings=config.batches,
            issuer_label=ISSUING,
            issuer_pem=hierarchy.issuing.certificate_pem,
            authority=ground.authority,
            ground=ground,
        )
        parts = Parts(
            config=config,
            home=home,
            clock=clock,
            logger=logger,
            registry=registry,
            metrics=metrics,
            pool=pool,
            database=database,
            hierarchy=hierarchy,
            builder=builder,
            profiles=profiles,
            clients=clients,
            publisher=publisher,
            issuance=issuance,
            batches=batches,
            revocation=RevocationService(publisher=publisher, crl_publisher=issuing_crl, ground=ground),
            own=OwnCertificates(
                home=home,
                issuing=hierarchy.issuing,
                issuance=issuance,
                profiles=profiles,
                files=files,
                clock=clock,
            ),
            crl_publishers=(root_crl, issuing_crl),
            refresher=Refresher(publisher=publisher, store=store, ground=ground),
            presence=presence,
            reconciler=Reconciler(publisher=publisher, store=store, ground=ground),
            commitments=Commitments(
                ground=ground,
                budget=pool.budget,
                issuer_label=ISSUING,
                validity_h=config.ocsp.validity_h,
                crl_interval_h=config.crl.interval_h,
                root_crl_interval_h=_ROOT_CRL_INTERVAL // dt.timedelta(hours=1),
                plan=config.plan,
            ),
            storage=StorageWatch(store=store, touch_store=register, ground=ground),
        )
        await _recover(parts, register, reached)
        yield parts


async def _workshop(
    stack: AsyncExitStack,
    config: Config,
    ground: Ground,
    *,
    preparer: Preparer,
    issuer: Issuer,
    profiles: ProfileRegistry,
) -> Workshop | None:
    settings = config.issuance
    if not settings.preparers:
        return None
    workshop = Workshop(
        preparer=preparer,
        issuer=issuer,
        begin=Begin(issuer.certificate_der, config.listen.url, ISSUING, float(settings.backdate_s)),
        profile_text=profiles.text,
        processes=settings.preparers,
        queue_limit=settings.queue_limit,
        clock=ground.clock,
        metrics=ground.metrics,
        logger=ground.logger,
    )
    return await stack.enter_async_context(workshop)


async def _linter(config: Config, pool: LintPool, files: Executor, ground: Ground) -> CertificateLinter:
    loop = asyncio.get_running_loop()
    exceptions = await loop.run_in_executor(files, documented_exceptions)
    shapes = KnownShapes(
        ground.database,
        exceptions,
        version=await loop.run_in_executor(files, package_version, "pkilint"),
        clock=ground.clock,
        metrics=ground.metrics,
        logger=ground.logger,
    )
    await shapes.recall()
    return CertificateLinter(
        pool,
        shapes,
        exceptions,
        sample=config.lint.sample,
        chance=SystemRandom().random,  # nobody can foretell what is sampled
        metrics=ground.metrics,
        logger=ground.logger,
    )


@asynccontextmanager
async def _database(config: Config, files: Executor) -> AsyncIterator[Database]:
    """Open the database where the settings say that it is."""
    place = await asyncio.get_running_loop().run_in_executor(files, place_of, config)
    async with Database(place) as database:
        yield database


def _identity(config: Config) -> Identity:
    """Say who we are to other authorities. Blocking."""
    store = store_identity(config.response_store)
    return Identity(id=authority_id(Home(config.home)), host=socket.gethostname(), store=store)


@asynccontextmanager
async def _signer_pool(
    config: Config,
    lanes: Sequence[LaneConfig],
    *,
    files: Executor,
    registry: CollectorRegistry,
    ground: Ground,
) -> AsyncIterator[SignerPool]:
    """Open the tokens, except those whose PIN was refused before, and use only keys that have certificates."""
    home, logger = Home(config.home), ground.logger
    loop = asyncio.get_running_loop()
    refused_pins = RefusedPins(home.refused_pins, lanes, logger)
    async with AsyncExitStack() as stack:
        pool = SignerPool(
            lanes=lanes,
            registry=registry,
            logger=logger,
            target_batch_s=config.signer.target_batch_ms / 1000,
            queue_limit=config.signer.queue_limit,
            batch_deadline_s=config.signer.batch_deadline_s,
            keep_alive_s=config.signer.keep_alive_s,
            weights=config.weights,
            expected=await loop.run_in_executor(
                files, partial(expected_keys, home, ground.database.place, issuer=ISSUING, responder=OCSP)
            ),
            refused_tokens=await loop.run_in_executor(files, refused_pins.recall),
            # At once, though it blocks the loop for a moment: whatever comes next may be the end of this process.
            on_token_failed=refused_pins.remember,
        )
        try:
            await stack.enter_async_context(pool)
        except KeyMismatch as error:
            raise KeyMismatch(f"no token has the keys of this home's certificates: {error}{_REPLACED}") from None
        yield pool


async def _recover(parts: Parts, register: Callable[[], Awaitable[None]], reached: Milestones) -> None:
    """Finish or close what a crash interrupted, before anybody can call."""
    await parts.issuance.recover()
    reached(Step.INTENTS_CLOSED)
    await parts.batches.recover()
    reached(Step.BATCHES_RECOVERED)
    await parts.publisher.ensure_published(_serial(parts.publisher.presigner.responder.certificate))
    await parts.reconciler.reconcile()
    reached(Step.ANSWERS_COMPARED)
    for publisher in parts.crl_publishers:
        await publisher.ensure()
    reached(Step.CRLS_THERE)
    # Only now is every answer of this issuer there; from now on workers may say that a serial is unknown.
    await register()
    reached(Step.ISSUER_REGISTERED)
    await parts.own.ensure_api(parts.config.listen.api_names)
    async with parts.database.alone("demo client"):
        await parts.own.ensure_demo(parts.clients)
    reached(Step.OWN_CERTIFICATES)


@asynccontextmanager
async def _thread(name: str) -> AsyncIterator[Executor]:
    """Own a thread for blocking work; on leaving, what was begun is finished without blocking the loop."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield executor
        await asyncio.get_running_loop().run_in_executor(executor, bool)  # the last in the queue
    finally:
        executor.shutdown(wait=False)


async def renew_responder(parts: Parts) -> None:
    """Let the presigner use a fresh responder certificate when the present one nears its end."""
    certificate = await parts.builder.ensure_responder(parts.hierarchy.issuing)
    parts.publisher.presigner.responder = _responder(certificate, parts.hierarchy.issuing)
    parts.metrics.responder_not_after.set(epoch(certificate.not_valid_after_utc))
    await parts.publisher.ensure_published(_serial(certificate))


async def _presigner(
    *,
    config: Config,
    builder: HierarchyBuilder,
    issuing: Issuer,
    pool: SignerPool,
    tag: IssuerTag,
    clock: Clock,
) -> Presigner:
    return Presigner(
        pool=pool,
        responder=_responder(await builder.ensure_responder(issuing), issuing),
        key_label=OCSP,
        issuer_tag=tag,
        validity=dt.timedelta(hours=config.ocsp.validity_h),
        clock=clock,
    )


def _responder(certificate: x509.Certificate, issuing: Issuer) -> Responder:
    return Responder.of(certificate, {"sha1": issuing.hashes("sha1"), "sha256": issuing.hashes("sha256")})


def _serial(certificate: x509.Certificate) -> SerialNumber:
    return SerialNumber(certificate.serial_number)


def _publish_ca_certificates(home: Home, hierarchy: Hierarchy) -> None:
    """Write the CA certificates where clients fetch them (AIA) and where people look for them."""
    root, issuing = hierarchy.root, hierarchy.issuing
    for label, issuer in ((ROOT, root), (ISSUING, issuing)):
        pem = issuer.certificate_pem.encode()
        write_file(home.public / "ca" / f"{label}.cer", issuer.certificate_der)
        write_file(home.public / "ca" / f"{label}.pem", pem)
        write_file(home.ca / f"{label}.pem", pem)
    write_file(home.ca / "chain.pem", (issuing.certificate_pem + root.certificate_pem).encode())
