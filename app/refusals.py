"""Every refusal, counted and logged in one place, whatever form its client gets it in."""

import logging

from app.errors import RequestError
from app.logs import Repeats
from app.metrics import Metrics

log = logging.getLogger(__name__)


class Refusals:
    """The refusals of one HTTP process. Of a kind, one a second is logged."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._repeats = Repeats()

    def record(self, error: RequestError, request: str, request_id: str) -> None:
        """Count and log a refusal; `request` names what was refused, as `POST /predict`."""
        self._metrics.rejected(error.code)
        held_back = self._repeats.pass_on(error.code)
        if held_back is None:
            return
        more = f" (and {held_back} more like it)" if held_back else ""
        line = f"{request} {error.status} {error.code}: {error}{more}"
        fields = {"request_id": request_id, "status": error.status, "code": error.code}
        log.info("%s", line, extra=fields)
