"""The dashboards. Expressions name only series that the services have: a test scrapes them."""

from __future__ import annotations

from deploy.monitoring.board_operator import OPERATOR
from deploy.monitoring.board_product import PRODUCT
from deploy.monitoring.board_trainer import TRAINER

BOARDS = (OPERATOR, PRODUCT, TRAINER)
