"""Every error that Reef answers or stops with.

ReefError
├── StartError                    stops the start: a line on stderr each, then `exit_status`
│   ├── SettingsError       2     a setting's name or value is wrong
│   ├── ModelError          3     a model, its labels or the manifest can't be used
│   ├── AddressError        4     the address to listen on can't be had
│   └── SystemLacks         5     this system does not let a server run
└── RequestError                  answered as JSON, with the status below
    ├── BadParameter        400   bad_parameter
    ├── ImageMissing        400   image_missing
    ├── ImageAmbiguous      400   image_ambiguous
    ├── UploadBroken        400   upload_broken
    ├── Unauthorized        401   unauthorized
    ├── NotFound            404   not_found
    ├── UnknownModel        404   unknown_model
    ├── MethodNotAllowed    405   method_not_allowed
    ├── UploadTooSlow       408   upload_too_slow
    ├── UploadTooLarge      413   upload_too_large
    ├── ImageTooLarge       413   image_too_large
    ├── UnsupportedType     415   unsupported_type
    ├── NotAnImage          415   not_an_image
    ├── ImageCorrupt        422   image_corrupt
    ├── TooManyRequests     429   too_many_requests
    ├── Bug                 500   internal_error
    ├── Busy                503   busy
    ├── NoDevice            503   no_device
    ├── DeviceFailed        503   device_failed
    └── DeadlineExceeded    504   deadline_exceeded

A message says what is wrong and what to do about it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class ReefError(Exception):
    """The root of the tree."""


class StartError(ReefError):
    """Stops the start of the program. Its arguments are what is wrong, a sentence each."""

    exit_status = 1

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class SettingsError(StartError):
    """A setting's name or value is wrong."""

    exit_status = 2


class ModelError(StartError):
    """A model file, its labels or the manifest can't be used."""

    exit_status = 3


class AddressError(StartError):
    """The address to listen on can't be had."""

    exit_status = 4


class SystemLacks(StartError):
    """This system does not let a server run: threads, open files, instructions, memory files."""

    exit_status = 5


class Problems:
    """Collects what stops the start, so that all of it is told at once and not one a try."""

    def __init__(self) -> None:
        self._errors: list[StartError] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """A step that may fail; the next ones are tried all the same."""
        try:
            yield
        except StartError as error:
            self._errors.append(error)

    def raise_all(self) -> None:
        """Raise the first that was collected, with the sentences of all; nothing where none was."""
        if self._errors:
            first = self._errors[0]
            sentences = dict.fromkeys(
                sentence for error in self._errors for sentence in error.problems
            )
            raise type(first)(*sentences) from first


class RequestError(ReefError):
    """Answered to the client as JSON, with this status and code."""

    status = 400
    code = "bad_request"
    headers: Mapping[str, str] = {}


class BadParameter(RequestError):
    """A parameter is not what it may be."""

    code = "bad_parameter"


class ImageMissing(RequestError):
    """There is no picture in the request."""

    code = "image_missing"


class ImageAmbiguous(RequestError):
    """There is more than one picture in the request."""

    code = "image_ambiguous"


class UploadBroken(RequestError):
    """The body ended early or is not the multipart form that it says it is."""

    code = "upload_broken"


class Unauthorized(RequestError):
    """The request has no API key, or a wrong one."""

    status = 401
    code = "unauthorized"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer realm="reef"'}


class NotFound(RequestError):
    """No such route."""

    status = 404
    code = "not_found"


class UnknownModel(RequestError):
    """The model asked for is not served here."""

    status = 404
    code = "unknown_model"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.headers = {"Allow": allow}


class UploadTooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "upload_too_slow"


class UploadTooLarge(RequestError):
    """The body has more bytes than allowed."""

    status = 413
    code = "upload_too_large"


class ImageTooLarge(RequestError):
    """The picture has more pixels than allowed."""

    status = 413
    code = "image_too_large"


class UnsupportedType(RequestError):
    """The request's Content-Type is not one that carries a picture."""

    status = 415
    code = "unsupported_type"


class NotAnImage(RequestError):
    """The bytes are no picture in a format that Reef reads."""

    status = 415
    code = "not_an_image"


class ImageCorrupt(RequestError):
    """The bytes begin like a picture but can't be decoded."""

    status = 422
    code = "image_corrupt"


class TooManyRequests(RequestError):
    """This client sends more than its share."""

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after_s)}


class Bug(RequestError):
    """Anything that nobody foresaw; the log has the traceback under the request id."""

    status = 500
    code = "internal_error"


class Busy(RequestError):
    """The queue is full."""

    status = 503
    code = "busy"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class NoDevice(RequestError):
    """No device can answer in time."""

    status = 503
    code = "no_device"
    headers: Mapping[str, str] = {"Retry-After": "5"}


class DeviceFailed(RequestError):
    """The device failed at this picture, and so did the second try."""

    status = 503
    code = "device_failed"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class DeadlineExceeded(RequestError):
    """The answer would have come too late."""

    status = 504
    code = "deadline_exceeded"
