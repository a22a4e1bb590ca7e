"""Tables that no certified state uses any more: since which height."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("canister_tables", sa.Column("retired_at", sa.BigInteger, nullable=True))


def downgrade() -> None:
    op.drop_column("canister_tables", "retired_at")
