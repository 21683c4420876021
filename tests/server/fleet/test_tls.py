"""A Temporal that lets in who shows a certificate: TLS by a front, as a load balancer is one."""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import select
import socket
import socketserver
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.fleet.connection import connect
from server.settings import Settings
from tests.server.fleet.stand_in import eventually


def write_pair(folder, name, signer=None):
    """A key and a certificate, by `signer` or by itself; what signs others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, by = (subject, key) if signer is None else signer
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(by, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, plain))
    return subject, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    authority = write_pair(folder, "authority")
    for name in ("temporal", "slice"):
        write_pair(folder, name, authority)
    write_pair(folder, "stranger", write_pair(folder, "others"))
    return folder


@contextlib.contextmanager
def front(address, certificates):
    """Where Temporal answers whom `authority` knows; yields the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "temporal.pem", certificates / "temporal.key")
    context.load_verify_locations(certificates / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with (
                contextlib.suppress(OSError),  # whom it does not let in, and whoever hangs up
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection((host, int(port))) as temporal,
            ):
                both = {client: temporal, temporal: client}
                while True:
                    waiting = [client] if client.pending() else select.select([*both], [], [])[0]
                    for each in waiting:
                        if not (data := each.recv(1 << 16)):
                            return
                        both[each].sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def settings_of(port, certificates, **names):
    files = {f"fleet_{kind}_file": certificates / name for kind, name in names.items()}
    url = f"temporal://127.0.0.1:{port}/default"
    return Settings(fleet=url, role="slice", files="/nowhere", **files)


def test_who_shows_a_certificate_is_let_in(temporal, certificates):
    mine = {"ca": "authority.pem", "cert": "slice.pem", "key": "slice.key"}

    async def work(settings):
        client = await connect(settings, identity="test")
        assert await client.service_client.check_health()

    with front(temporal.address, certificates) as port:
        asyncio.run(work(settings_of(port, certificates, **mine)))


@pytest.mark.parametrize(
    "shown",
    [
        {"ca": "authority.pem"},
        {"ca": "authority.pem", "cert": "stranger.pem", "key": "stranger.key"},
        {"ca": "others.pem", "cert": "slice.pem", "key": "slice.key"},
    ],
    ids=["no certificate", "of another authority", "Temporal of another authority"],
)
def test_others_are_not(temporal, certificates, shown, caplog):
    """They wait, and say why: certificates are renewed under running servers."""

    async def work(settings):
        connecting = asyncio.create_task(connect(settings, identity="test"))
        with caplog.at_level(logging.WARNING, "wan_tpu.fleet.connection"):
            await eventually(lambda: caplog.messages)
        assert not connecting.done()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)

    with front(temporal.address, certificates) as port:
        asyncio.run(work(settings_of(port, certificates, **shown)))
    line = caplog.messages[0]
    assert "waiting for it" in line
    assert "\n" not in line
