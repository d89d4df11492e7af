"""How a transit ends: with a response, with a problem, or visibly broken off."""

import time

from mitmproxy.flow import Error
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from mitmgate.core.reason import Reason
from mitmgate.engine.lane.upstream import Phase
from mitmgate.engine.lane.waiting import DETAILS, MALFORMED, RequestPhase, ResponsePhase, TransitState
from mitmgate.stages.enforcer import problem_response


class TransitEnding(TransitState):
    """The ways in which a transit ends. What begins it is in requesting.py."""

    __slots__ = ()

    def broken(self) -> None:
        """End because of a defect."""
        self.crashed()
        self._client.break_off()

    def crashed(self) -> None:
        """Record the end of what a defect of ours has broken; the client's connection is closed by its owner."""
        self._stop()
        self._relay = None
        self._leave_upstream()
        if self._request is RequestPhase.WAITING or self._response is ResponsePhase.DONE:
            return
        self._response = ResponsePhase.DONE
        self._request = RequestPhase.DROPPED
        self._blame(Reason.STAGE_ERROR, "The gateway failed.")
        self.flow.error = Error("The gateway failed.")
        self.flow.live = False
        self._hook(HttpErrorHook, lambda: None)

    def _answer(self) -> None:
        """Send a response that the gateway made, at once: what is still to come of the request is not waited for."""
        self._stop()
        self._request = RequestPhase.DROPPED
        self._request_body.clear()
        self._response_body.clear()
        response = self.flow.response
        if response is None:
            raise ValueError("no response")
        response.stream = False
        self._response = ResponsePhase.BUFFERING
        self._hook(HttpResponseHeadersHook, lambda: self._respond(streamed=False))

    def _respond(self, *, streamed: bool) -> None:
        """Fire the response hook, and send what was not sent yet."""
        response = self.flow.response
        if response is None:
            raise ValueError("no response")
        self._stop()
        response.data.timestamp_end = time.time()
        self._count()
        self._hook(HttpResponseHook, self._end_streamed if streamed else self._end_buffered)

    def _end_buffered(self) -> None:
        if self._killed(hook=False):
            return
        self._response = ResponsePhase.DONE
        self._head_sent = True
        response = self.flow.response
        if response is not None:
            content = response.data.content or b""
            close = self._request is RequestPhase.DROPPED and response.data.status_code in MALFORMED
            self._client.send_head(response, len(content), content, close=close)
        self._done()

    def _end_streamed(self) -> None:
        if self._killed(hook=False):
            return
        self._response = ResponsePhase.DONE
        self._done()

    def _done(self) -> None:
        self.flow.live = False
        self._leave_upstream()
        self._client.finish()

    def _fail(self, reason: Reason, detail: str = "") -> None:
        """Answer with a problem while that is possible, else end visibly."""
        exchange = self.exchange
        if self._head_sent or exchange is None:
            self._abort(reason)
            return
        detail = detail or DETAILS.get(reason, "")
        self._blame(reason, detail)
        exchange.body_in = self._received
        self._leave_upstream()
        self.flow.response = problem_response(exchange, reason, detail)
        self._answer()

    def _abort(self, reason: Reason) -> None:
        """End without a response, or in the middle of one, so that the client can't take it for complete."""
        self._stop()
        detail = DETAILS.get(reason, reason.title)
        self._blame(reason, detail)
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        self._leave_upstream()
        self._request_body.clear()
        self._response_body.clear()
        self.flow.error = Error(detail)
        self._count()
        self._hook(HttpErrorHook, self._gone_for_good)

    def _gone_for_good(self) -> None:
        self.flow.live = False
        self._client.break_off()

    def _killed(self, *, hook: bool = True) -> bool:
        """End where an addon killed the flow."""
        error = self.flow.error
        if error is None or error.msg != Error.KILLED_MESSAGE:
            return False
        self._stop()
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        self._leave_upstream()
        if hook:
            self._hook(HttpErrorHook, self._gone_for_good)
        else:
            self._gone_for_good()
        return True

    def _blame(self, reason: Reason, detail: str) -> None:
        if self.exchange is not None:
            self.exchange.failure = reason
            self.exchange.failure_detail = detail
            self.exchange.uploading = self._request is RequestPhase.STREAMING

    def _leave_upstream(self) -> None:
        """Close an upstream connection that has an unfinished exchange on it: it is never used again."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None and upstream.phase is not Phase.IDLE:
            upstream.abandon()

    def _stop(self) -> None:
        self._deadline.clear()
        if self._lifetime is not None:
            self._lifetime.cancel()
            self._lifetime = None

    def _count(self) -> None:
        """Say how much of streamed bodies went through, for those that record it."""
        if self.exchange is None:
            return
        if self.flow.request.stream:
            self.exchange.body_in = self._received
        if self.flow.response is not None and self.flow.response.stream:
            self.exchange.body_out = self._delivered
