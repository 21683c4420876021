"""A PostgreSQL for tests: the one that is named, or a throw-away one of this machine's."""

import contextlib
import os
import pathlib
import secrets
import shutil
import subprocess
import tempfile

import sqlalchemy as sa

from tests.requirements import require

HOW_TO_INSTALL = (
    "needs PostgreSQL: apt-get install postgresql, or name one in WAN_TPU_TEST_POSTGRES_URL"
)


@contextlib.contextmanager
def running_postgres():
    """The SQLAlchemy URL of a server on which databases can be made."""
    url = os.environ.get("WAN_TPU_TEST_POSTGRES_URL")
    if url:
        yield url
        return
    folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    require(folders, HOW_TO_INSTALL)
    home = pathlib.Path(tempfile.mkdtemp(prefix="wan-tpu-postgres-"))
    # PostgreSQL refuses to run as root; Debian's package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(home, user)

    def run(program, *arguments):
        subprocess.run(
            [folders[-1] / program, *arguments], check=True, user=user, cwd=home, env={},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    data = home / "data"
    run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-c listen_addresses='' -c unix_socket_directories={home}"
    run("pg_ctl", "-D", data, "-w", "-l", home / "log", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={home}"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home)


@contextlib.contextmanager
def new_database(url):
    """The URL of an empty database, dropped at the end."""
    name = f"wan_tpu_{secrets.token_hex(6)}"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
