"""The node's own schema: the catalogue of canister tables, and the fence."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "canister_tables",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sql_name", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "certified",
        sa.Column("height", sa.BigInteger, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.CheckConstraint("height >= 0", name="ck_certified_height"),
    )


def downgrade() -> None:
    op.drop_table("certified")
    op.drop_table("canister_tables")
