"""The command `migrate`: create or alter all tables with the rights of their owner."""

from affiliate_pipeline.app.cli import app, console
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import migrations
from affiliate_pipeline.postgres.table_store import TableStore


@app.command()
def migrate() -> None:
    """Create or alter all tables, Dagster's included, so that a role without these rights can do everything else.

    Not needed if the role of AFFILIATE_DATABASE_URL may create schemas and tables.
    """
    # Imported here: it imports Dagster, which takes seconds.
    from affiliate_pipeline.app.instance.storage import Storage

    environment = start_database(application())
    Storage.from_config_value(None, {})  # creates Dagster's tables
    with Store(environment.database_url()) as store:
        store.connection.autocommit = True
        # Importing the endpoints has imported every subclass of `TableStore` with migrations of its own. All others
        # have the migrations `CORE`, which this set contains anyway, because `Store` has them too.
        for each in {owner.migrations for owner in TableStore.__subclasses__()}:
            migrations.migrate(store.connection, each)
        for endpoint in ENDPOINTS:
            endpoint_tables.ensure(store.connection, endpoint)
    console.print("All tables are of this release.")
