"""Uses a branch through drivers and tools of Python, by the connection string that `ardent` prints.

    drivers.py URL

A table `users` of 2,000 rows is there, whose column `name` is text. Prints the name of each driver that works, one a line.
"""

import asyncio
import sys
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import psycopg
import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

URL = sys.argv[1]


def use_psycopg():
    with psycopg.connect(URL) as connection:
        assert connection.execute("select count(*) from users").fetchone() == (2000,)
        with connection.transaction(force_rollback=True):
            connection.execute("delete from users where id = %s", (1,))
        for _ in range(10):  # From the fifth on it is a prepared statement of the server's.
            assert connection.execute("select name from users where id = %s", (7,)).fetchone() == ("7",)
        with connection.cursor() as cursor:
            connection.execute("create temp table copied (n int, v jsonb, t timestamptz)")
            with cursor.copy("copy copied from stdin") as copy:
                for number in range(1000):
                    copy.write_row((number, '{"a": [1, null]}', "2026-01-31T12:00:00Z"))
            assert cursor.execute("select count(*), max(v->'a'->>0) from copied").fetchone() == (1000, "1")
        with connection.pipeline():
            answers = [connection.execute("select %s::int", (number,)) for number in range(50)]
        assert [answer.fetchone()[0] for answer in answers] == list(range(50))
        with connection.cursor(name="by_pieces") as cursor:
            cursor.itersize = 100
            assert sum(1 for _ in cursor.execute("select * from users")) == 2000
    try:
        with psycopg.connect(URL) as connection:
            connection.execute("select nothing from users")
    except psycopg.errors.UndefinedColumn as error:
        assert error.diag.sqlstate == "42703"
    else:
        raise AssertionError("a mistake is no error")


async def use_asyncpg():
    pool = await asyncpg.create_pool(URL, min_size=2, max_size=5)
    async with pool:
        found = await asyncio.gather(*(pool.fetchval("select name from users where id = $1", number) for number in range(1, 51)))
        assert found == [str(number) for number in range(1, 51)], found
        async with pool.acquire() as connection:
            async with connection.transaction():
                rows = [row["id"] async for row in connection.cursor("select id from users order by id", prefetch=100)]
            assert len(rows) == 2000
            await connection.execute("create temp table copied (n int, v text[])")
            await connection.copy_records_to_table("copied", records=[(number, ["a", None]) for number in range(500)])
            assert await connection.fetchval("select count(*) from copied where v[2] is null") == 500
            try:
                await connection.execute("select pg_sleep(60)", timeout=0.3)
            except asyncio.TimeoutError:
                pass
            assert await connection.fetchval("select 1") == 1, "the statement was cancelled, and the session goes on"
            heard = asyncio.Queue()
            await connection.add_listener("news", lambda *what: heard.put_nowait(what[-1]))
            await pool.execute("select pg_notify('news', 'hello')")
            assert await asyncio.wait_for(heard.get(), 10) == "hello"
            await connection.reset()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


def use_sqlalchemy():
    engine = sqlalchemy.create_engine(URL.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Order(what=f"thing {number}") for number in range(300))
        session.commit()
        assert session.scalar(sqlalchemy.select(sqlalchemy.func.count(Order.id))) == 300
        first = session.get(Order, 1)
        first.what = "another"
        session.commit()
    inspector = sqlalchemy.inspect(engine)
    assert {"users", "orders"} <= set(inspector.get_table_names())
    assert [column["name"] for column in inspector.get_columns("users")] == ["id", "name"]

    # A migration and its way back, as Alembic runs them.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.add_column("orders", sqlalchemy.Column("paid", sqlalchemy.Boolean, server_default="false", nullable=False))
        operations.create_index("orders_what", "orders", ["what"])
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        from alembic.autogenerate import compare_metadata

        found = {change[0] for change in compare_metadata(context, Base.metadata) if isinstance(change, tuple)}
        assert {"remove_column", "remove_index"} <= found, found
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        operations.drop_index("orders_what")
        operations.drop_column("orders", "paid")
    engine.dispose()


def use_django():
    import django
    from django.conf import settings

    parts = urlsplit(URL)
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": parts.path[1:],
                "USER": parts.username,
                "PASSWORD": parts.password,
                "HOST": parts.hostname,
                "PORT": parts.port,
                "OPTIONS": dict(parse_qsl(parts.query)),
            }
        },
    )
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import transaction

    call_command("migrate", verbosity=0)
    User.objects.create_user("one", password="secret")
    try:
        with transaction.atomic():
            User.objects.create_user("two")
            raise KeyError
    except KeyError:
        pass
    assert [user.username for user in User.objects.all()] == ["one"]
    call_command("migrate", "auth", "0001", verbosity=0)
    call_command("migrate", verbosity=0)
    assert User.objects.get(username="one").check_password("secret")


use_psycopg()
print("psycopg", flush=True)
asyncio.run(use_asyncpg())
print("asyncpg", flush=True)
use_sqlalchemy()
print("sqlalchemy", flush=True)
use_django()
print("django", flush=True)
