"""A PostgreSQL for tests: the one that is named, or a throw-away one of this machine's."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess

import psutil
import sqlalchemy as sa

from server.demo.backing import BackingError, PostgreSQL
from tests.requirements import require

HOW_TO_INSTALL = (
    "needs PostgreSQL: apt-get install postgresql, or name one in WAN_TPU_TEST_POSTGRES_URL"
)


class Postgres(PostgreSQL):
    """A throw-away PostgreSQL of this machine's, at work, which things can be done to."""

    def __init__(self):
        try:
            super().__init__()
        except BackingError:
            require(False, HOW_TO_INSTALL)
        self.url = self.url.replace("postgresql:", "postgresql+psycopg:")
        self.start()

    @property
    def socket_path(self):
        return self.home / ".s.PGSQL.5432"

    def freeze(self):
        """Nothing answers any more, and no connection ends."""
        self._signal(signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

    def strike(self):
        """All its processes end as the kernel ends them, and are gone."""
        psutil.wait_procs(self._signal(signal.SIGKILL))

    def copy(self):
        """Keeps what it has now; stopped for that."""
        self.stop()
        subprocess.run(["cp", "-a", self._data, self.home / "copy"], check=True)
        self.start()

    def fail_over_to_copy(self):
        """The standby takes over, without what came after the copy."""
        self.stop()
        shutil.rmtree(self._data)
        (self.home / "copy").rename(self._data)
        self.start()

    def _signal(self, number):
        postmaster = psutil.Process(self.pid)
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes


@contextlib.contextmanager
def running_postgres():
    """The SQLAlchemy URL of a server on which databases can be made."""
    url = os.environ.get("WAN_TPU_TEST_POSTGRES_URL")
    if url:
        yield url
        return
    with contextlib.closing(Postgres()) as postgres:
        yield postgres.url


@contextlib.contextmanager
def new_database(url):
    """The URL of an empty database, dropped at the end."""
    name = f"wan_tpu_{secrets.token_hex(6)}"
    # A new connection each time: the server may be another one by the end.
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
