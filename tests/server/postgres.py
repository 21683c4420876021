"""A PostgreSQL for tests: the one that is named, or a throw-away one of this machine's."""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import tempfile

import psutil
import sqlalchemy as sa

from tests.requirements import require

HOW_TO_INSTALL = (
    "needs PostgreSQL: apt-get install postgresql, or name one in WAN_TPU_TEST_POSTGRES_URL"
)


class Postgres:
    """A throw-away PostgreSQL of this machine's, which things can be done to."""

    def __init__(self):
        folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
        require(folders, HOW_TO_INSTALL)
        self._programs = folders[-1]
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="wan-tpu-postgres-"))
        self._data = self.home / "data"
        # PostgreSQL refuses to run as root; Debian's package brings a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.home, self._user)
        self._run(
            "initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"
        )
        self.start()

    @property
    def url(self):
        return f"postgresql+psycopg://postgres@/postgres?host={self.home}"

    @property
    def socket_path(self):
        return self.home / ".s.PGSQL.5432"

    def start(self):
        options = f"-c listen_addresses='' -c unix_socket_directories={self.home}"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self.home / "log", "-o", options, "start")

    def stop(self):
        """As `systemctl stop` does, with a checkpoint; connections are cut."""
        self._run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "stop")

    def freeze(self):
        """Nothing answers any more, and no connection ends."""
        self._signal(signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

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

    def close(self):
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        shutil.rmtree(self.home)

    def _signal(self, number):
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        for process in (postmaster, *postmaster.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _run(self, program, *arguments):
        subprocess.run(
            [self._programs / program, *arguments], check=True, user=self._user, cwd=self.home,
            env={}, stdout=subprocess.DEVNULL,
        )  # fmt: skip


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
