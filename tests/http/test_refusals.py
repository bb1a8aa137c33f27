"""Whatever is sent, the answer says what is wrong, and the server goes on serving."""

import contextlib
import fcntl
import gzip
import io
import socket
import struct
import termios
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.http.form import MAX_PARTS, MAX_TEXT_BYTES
from app.service import Service, admitted
from tests import colour_model
from tests.corpus import make
from tests.corpus.mutate import mutations
from tests.http.conftest import DEFAULT, Client, MakeClient, client_of, refused
from tests.support import (
    MEBIBYTE,
    build_service,
    encode,
    flat,
    form,
    make_settings,
    noise,
    part,
    resident_growth,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("still_serves")

TEN_KB = "9" * 10_000


# ---------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize("sample", make.CORPUS, ids=lambda sample: sample.name)
def test_the_corpus_is_answered_as_its_table_says(
    sample: make.Sample, client: Client, corpus: dict[str, Path]
) -> None:
    answer = client.predict(corpus[sample.name].read_bytes())
    if answer.status_code != 200:
        refused(answer, next(iter(sample.outcomes - {make.SEEN})))
        return
    assert make.SEEN in sample.outcomes
    width, height = answer.json["image"]["width"], answer.json["image"]["height"]
    for each in answer.json["predictions"]:
        x1, y1, x2, y2 = each["bbox"]
        assert 0 <= x1 <= x2 <= width
        assert 0 <= y1 <= y2 <= height


def test_a_refusal_of_a_picture_lists_the_formats_that_are_read(client: Client) -> None:
    said = refused(client.predict(b"I am a picture."), make.NOT_AN_IMAGE)
    assert said.endswith("JPEG, PNG, WEBP, BMP, GIF")


def test_a_refusal_of_a_large_picture_names_its_size_and_the_setting(client: Client) -> None:
    said = refused(client.predict(make.BY_NAME["png_just_above"].make()), make.TOO_LARGE)
    assert "5001x5000" in said
    assert "25 megapixels" in said
    assert "REEF_MAX_MEGAPIXELS" in said


def test_a_picture_that_is_too_thin_to_be_scaled_is_held_to_the_limit_for_whole_ones(
    make_client: MakeClient,
) -> None:
    client = make_client(max_megapixels=1)
    said = refused(client.predict(flat(size=(60_000, 60))), make.TOO_LARGE)
    assert "60000x60 pixels, more than 1 megapixels" in said


@pytest.mark.parametrize("host", ["a..b", ".local", "\u00e9..x", "x" * 64 + ".local", ""])
def test_whatever_a_client_calls_this_host_it_is_answered(client: Client, host: str) -> None:
    answer = client.get("/health", headers={"Host": host})
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_hundreds_of_damaged_pictures_are_seen_or_refused(client: Client) -> None:
    pictures = [encode(noise((32, 24)), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")]
    statuses = {client.predict(each).status_code for each in mutations(pictures, 400, seed=34)}
    assert statuses == {200, 413, 415, 422}


# ---------------------------------------------------------------------------- no picture, or two


def image(content: bytes | None = None) -> bytes:
    """The part that is wanted."""
    return part("image", flat() if content is None else content, "cat.jpg")


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "no body": ({}, "400 image_missing"),
    "no body, but a type": ({"content_type": "image/jpeg"}, "400 image_missing"),
    "an empty picture": (form(image(b"")), "400 image_missing"),
    "no field image": (form(part("file", flat(), "cat.jpg")), "400 image_missing"),
    "a field Image": (form(part("Image", flat(), "cat.jpg")), "400 image_missing"),
    "a part without a name": (form(part(None, flat())), "400 image_missing"),
    "a form of no parts": (form(), "400 image_missing"),
    "an address instead": (form(part("url", "http://169.254.169.254/")), "400 image_missing"),
    "two pictures": (form(image(), image()), "400 image_ambiguous"),
    "two pictures, one empty": (form(image(), image(b"")), "400 image_ambiguous"),
    "a picture and a text of that name": (
        form(image(), part("image", "cat")), "400 image_ambiguous",
    ),
    "a text instead of a picture": (form(part("image", "cat")), "415 not_an_image"),
    "no boundary": (
        form(image()) | {"content_type": "multipart/form-data"}, "400 upload_broken",
    ),
    "an empty boundary": (
        form(image()) | {"content_type": 'multipart/form-data; boundary=""'}, "400 upload_broken",
    ),
    "another boundary": (
        form(image()) | {"content_type": "multipart/form-data; boundary=other"},
        "400 upload_broken",
    ),
    "a boundary with half its quotes": (
        form(image(), boundary="bnd") | {"content_type": 'multipart/form-data; boundary="bnd'},
        "400 upload_broken",
    ),
    "a boundary that is no ASCII": (
        form(image()) | {"content_type": "multipart/form-data; boundary=gr\xfcn"},
        "400 upload_broken",
    ),
    "a form without its end": (
        form(image(), boundary="b") | {"data": form(image(), boundary="b")["data"][:-60]},
        "400 upload_broken",
    ),
    "an empty form": (form() | {"data": b""}, "400 image_missing"),
    "no form at all": (form() | {"data": flat()}, "400 upload_broken"),
    "line feeds alone": (
        {
            "data": form(image(), boundary="b")["data"].replace(b"\r\n", b"\n"),
            "content_type": "multipart/form-data; boundary=b",
        },
        "400 upload_broken",
    ),
    "too many parts": (
        form(image(), *[part(f"f{n}", "x") for n in range(MAX_PARTS)]), "400 upload_broken",
    ),
    "1500 parts": (form(image(), *[part(f"f{n}", "x") for n in range(1500)]), "400 upload_broken"),
    "a header of 10 kB": (
        form(part("image", flat(), headers=("X-Long: " + TEN_KB,))), "400 upload_broken",
    ),
    "a filename of 10 kB": (form(part("image", flat(), TEN_KB)), "400 upload_broken"),
    "20 headers": (
        form(part("image", flat(), headers=tuple(f"X-{n}: y" for n in range(20)))),
        "400 upload_broken",
    ),
    "a name that is no UTF-8": (
        form(b'Content-Disposition: form-data; name="image\xff"\r\n\r\n' + flat()),
        "400 image_missing",
    ),
    "a header without a colon": (form(b"Content-Disposition\r\n\r\n" + flat()),
                                 "400 upload_broken"),
    "a part without a header": (form(b"\r\n" + flat()), "400 upload_broken"),
    "a long text": (
        form(part("note", "x" * (MAX_TEXT_BYTES + 1)), image()), "413 upload_too_large",
    ),
    "JSON": ({"json": {"image": "aGVsbG8="}}, "415 unsupported_type"),
    "a text": ({"data": "cat", "content_type": "text/plain"}, "415 unsupported_type"),
    "base64 as a picture": (
        {"data": b64encode(flat()), "content_type": "image/jpeg"}, "415 not_an_image",
    ),
    "base64 in a form": (form(part("image", b64encode(flat()))), "415 not_an_image"),
    "a data: URI as a picture": (
        {"data": b"data:image/jpeg;base64," + b64encode(flat()), "content_type": "image/jpeg"},
        "415 not_an_image",
    ),
    "a picture of no type": ({"data": flat()}, "415 unsupported_type"),
    "a picture as curl sends --data-binary": (
        {"data": flat(), "content_type": "application/x-www-form-urlencoded"},
        "415 unsupported_type",
    ),
    "an address in a plain form": (
        {"data": {"url": "http://169.254.169.254/"}}, "415 unsupported_type",
    ),
    "a form of forms": (
        form(image()) | {"content_type": "multipart/mixed; boundary=b"}, "415 unsupported_type",
    ),
    "a type that is none": ({"data": flat(), "content_type": "///"}, "415 unsupported_type"),
    "a type that forges a line": (
        {"data": flat(), "content_type": "x\x1b[31m/y"}, "415 unsupported_type",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_what_holds_no_picture_is_refused(name: str, client: Client) -> None:
    sent, outcome = FORMS[name]
    refused(client.post("/predict", **sent), outcome)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base64 as a picture", "the picture is base64 text; send the bytes that it stands for"),
        ("base64 in a form", "the picture is base64 text; send the bytes that it stands for"),
        ("a data: URI as a picture", "the picture is a data: URI; send the bytes that it stands"),
        ("JSON", "or as the body with 'Content-Type: image/jpeg', as bytes and not as base64"),
        ("a text", "or as the body with 'Content-Type: image/jpeg', as bytes and not as base64"),
        ("no boundary", "the form's Content-Type names no boundary"),
        ("an empty boundary", "the form's Content-Type names no boundary"),
        ("another boundary", "the boundary of its Content-Type is not in its body; leave that"),
        ("a boundary with half its quotes", "the boundary of its Content-Type is not in its body"),
        ("a form without its end", "it does not end with the boundary of its Content-Type"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(name: str, words: str, client: Client) -> None:
    sent, outcome = FORMS[name]
    assert words in refused(client.post("/predict", **sent), outcome)


@pytest.mark.parametrize("name", ["no body", "no field image", "JSON", "no boundary"])
def test_who_sends_no_picture_is_told_how(name: str, client: Client) -> None:
    answer = client.post("/predict", **FORMS[name][0])
    assert "multipart field 'image'" in answer.json["error"]


def test_a_content_type_of_any_length_is_shown_cut(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        answer = client.post("/predict", data=flat(), content_type="text/" + "x" * 3500)
    refused(answer, "415 unsupported_type")
    assert "text/xxx" in answer.text
    assert "x" * 100 not in answer.text + caplog.text


def test_two_pictures_are_counted(client: Client) -> None:
    said = refused(client.post("/predict", **form(*[image()] * 3)), "400 image_ambiguous")
    assert said.startswith("the form has 3 fields 'image'")


# ---------------------------------------------------------------------------- parameters

BAD_MIN_SCORES = ["abc", "nan", "NaN", "inf", "-inf", "infinity", "-1", "-0.1", "-0", "1.1",
                  "1.0000001", "2", "1e309", "1e999", "1e-9999", "0x1", "0,5", "1/2", "0.5.5", "e",
                  ".", "1_0", "\u0660\u066b\u0665", "\u0660.\u0665", "\x00", TEN_KB]  # fmt: skip
BAD_MAX_RESULTS = ["abc", "0", "-1", "1001", "1.5", "1e2", "nan", "0x10", "1_0",
                   "\u0661", TEN_KB]  # fmt: skip
BAD_PARAMETERS = [
    *(("min_score", text, "min_score takes a number from 0 to 1") for text in BAD_MIN_SCORES),
    *(("max_results", text, "max_results takes a whole number from 1 to 1000")
      for text in BAD_MAX_RESULTS),
    *(("labels", text, "labels: model colour has no label")
      for text in ("cat", "red,cat", "class_0", "RED", "r\x1b[31med", TEN_KB)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BAD_PARAMETERS)
def test_a_bad_parameter_names_itself_and_what_it_takes(
    name: str, text: str, words: str, client: Client
) -> None:
    in_query = client.post(
        "/predict", query_string={name: text}, data=flat(), content_type="image/jpeg"
    )
    assert refused(in_query, "400 bad_parameter").startswith(words)
    in_form = client.post("/predict", **form(image(), part(name, text)))
    assert refused(in_form, "400 bad_parameter").startswith(words)


TWICE = ["min_score=0.5", "max_results=5", "labels=red", f"model={DEFAULT}"]


@pytest.mark.parametrize("pair", TWICE)
def test_a_parameter_that_is_sent_twice_is_refused_wherever(pair: str, client: Client) -> None:
    name, value = pair.split("=")
    field = part(name, value)
    for answer in (
        client.predict(flat(), f"{pair}&{pair}"),
        client.post("/predict", **form(image(), field, field)),
        client.post(f"/predict?{pair}", **form(image(), field)),
    ):
        said = refused(answer, "400 bad_parameter")
        assert said == f"{name} was sent 2 times; send it once"


@pytest.mark.parametrize("name", ["yolo", "COLOUR", "../colour", "colour.tflite", TEN_KB, "\x00"])
def test_an_unknown_model_is_404_with_those_there_are(name: str, client: Client) -> None:
    answer = client.post(
        "/predict", query_string={"model": name}, data=flat(), content_type="image/jpeg"
    )
    assert refused(answer, "404 unknown_model").endswith(f"there is: colour, {DEFAULT}")


# ---------------------------------------------------------------------------- sizes


def padded(length: int) -> bytes:
    """A picture of so many bytes."""
    return flat().ljust(length, b"\0")


def test_a_body_may_have_as_many_bytes_as_the_limit_says(make_client: MakeClient) -> None:
    assert make_client(max_upload_mib=1).predict(padded(MEBIBYTE)).status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(make_client: MakeClient) -> None:
    body = io.BytesIO(padded(MEBIBYTE + 1))
    client = make_client(max_upload_mib=1)
    answer = client.post("/predict", input_stream=body, content_type="image/jpeg")
    said = refused(answer, "413 upload_too_large")
    assert "1 MiB" in said
    assert "REEF_MAX_UPLOAD_MIB" in said
    assert body.tell() == 0


def test_a_length_of_ten_gigabytes_is_refused_at_once(client: Client) -> None:
    answer = client.post(
        "/predict",
        content_type="image/jpeg",
        environ_overrides={"CONTENT_LENGTH": str(10**10)},
    )
    refused(answer, "413 upload_too_large")


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413), (MEBIBYTE, 413)])
def test_a_body_without_its_length_is_held_to_the_limit_too(
    extra: int, status: int, make_client: MakeClient
) -> None:
    body = io.BytesIO(padded(MEBIBYTE + extra))
    answer = make_client(max_upload_mib=1).post(
        "/predict",
        input_stream=body,
        content_type="image/jpeg",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    )
    assert answer.status_code == status
    assert body.tell() <= MEBIBYTE + 1


def test_a_form_is_held_to_the_limit_as_a_whole(make_client: MakeClient) -> None:
    answer = make_client(max_upload_mib=1).post("/predict", **form(image(padded(MEBIBYTE))))
    refused(answer, "413 upload_too_large")


def test_a_body_that_ends_early_is_400(client: Client) -> None:
    answer = client.post(
        "/predict",
        data=flat(),
        content_type="image/jpeg",
        environ_overrides={"CONTENT_LENGTH": "100000"},
    )
    assert "of 100000 bytes" in refused(answer, "400 upload_broken")


def test_a_body_that_stops_coming_is_408(client: Client) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as body:
        ours.settimeout(0.05)
        theirs.sendall(b"\xff\xd8\xff")
        answer = client.post(
            "/predict",
            content_type="image/jpeg",
            environ_overrides={"CONTENT_LENGTH": "1000", "wsgi.input": body},
        )
    refused(answer, "408 upload_too_slow")


def test_a_body_that_is_cut_off_at_the_deadline_is_408(make_client: MakeClient) -> None:
    answer = make_client(deadline_s=1e-9).post(
        "/predict",
        data=flat(),
        content_type="image/jpeg",
        environ_overrides={"CONTENT_LENGTH": "100000"},
    )
    refused(answer, "408 upload_too_slow")


# ---------------------------------------------------------------------------- compressed bodies


def compressed(body: bytes, coding: str) -> dict[str, Any]:
    """A picture's body, and what its Content-Encoding says of it."""
    return {"data": body, "content_type": "image/jpeg", "headers": {"Content-Encoding": coding}}


COMPRESSED: dict[str, tuple[bytes, str, str, str]] = {
    # name: (the body, its coding, the answer, what it says)
    "gzip cut short": (gzip.compress(flat())[:-12], "gzip", "400 upload_broken", "the body ends"),
    "gzip's beginning": (b"\x1f\x8b", "gzip", "400 upload_broken", "the body ends before"),
    "deflate cut short": (zlib.compress(flat())[:-9], "deflate", "400 upload_broken", "body ends"),
    "no gzip": (flat(), "gzip", "400 upload_broken", "the body is no gzip, as its Content-Encod"),
    "no deflate": (flat(), "deflate", "400 upload_broken", "the body is no deflate, as its"),
    "gzip with a wrong checksum": (
        gzip.compress(flat())[:-8] + bytes(8), "gzip", "400 upload_broken", "the body is no gzip",
    ),
    "gzip and something else": (
        gzip.compress(flat()) + b"something", "gzip", "400 upload_broken", "the body is no gzip",
    ),
    "nothing in gzip": (gzip.compress(b""), "gzip", "400 image_missing", "the picture is empty"),
    "a text in gzip": (gzip.compress(b"text"), "gzip", "415 not_an_image", "not a picture"),
    "br": (flat(), "br", "415 unsupported_type", "Content-Encoding 'br'; send it as gzip, as defl"),
    "zstd": (flat(), "ZSTD", "415 unsupported_type", "Content-Encoding 'ZSTD'"),
    "aws-chunked": (flat(), "aws-chunked", "415 unsupported_type", "'aws-chunked'"),
    "two codings": (flat(), "gzip, gzip", "415 unsupported_type", "'gzip, gzip'"),
    "a coding that forges a line": (flat(), "x\x1b[31m", "415 unsupported_type", r"'x\x1b[31m'"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_body_that_cannot_be_unpacked_is_refused_in_words(
    name: str, client: Client
) -> None:
    body, coding, outcome, words = COMPRESSED[name]
    assert words in refused(client.post("/predict", **compressed(body, coding)), outcome)


BOMBS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", BOMBS)
def test_what_is_compressed_is_held_to_the_limit_and_unpacked_no_further(
    coding: str, make_client: MakeClient
) -> None:
    client, bomb = make_client(max_upload_mib=1), BOMBS[coding](bytes(100 * MEBIBYTE))
    assert len(bomb) < MEBIBYTE
    began = time.process_time()
    with resident_growth() as growth:
        answer = client.post("/predict", **compressed(bomb, coding))
    assert "1 MiB" in refused(answer, "413 upload_too_large")
    assert growth() < 16 * MEBIBYTE
    assert time.process_time() - began < 1


def test_many_gzips_in_one_cost_no_more_than_a_few(make_client: MakeClient) -> None:
    empty = gzip.compress(b"")
    flood = empty * (MEBIBYTE // len(empty))
    began = time.process_time()
    answer = make_client(max_upload_mib=1).post("/predict", **compressed(flood, "gzip"))
    refused(answer, "400 image_missing")
    assert time.process_time() - began < 1


# ---------------------------------------------------------------------------- nothing is shown

SECRET = b"K\xf6ln-\x8c\xba\x8a\xd6-secret"


def disposition(name: bytes, filename: bytes, more: bytes = b"") -> bytes:
    """The head of a form's part, of any bytes."""
    value = b'form-data; name="' + name + b'"; filename="' + filename + b'"'
    return b"Content-Disposition: " + value + more + b"\r\n\r\n"


LEAKS: dict[str, dict[str, Any]] = {
    # forms that are refused, with a name in them that nobody is to see
    "no head": form(SECRET),
    "a header that is none": form(b"X-" + SECRET + b"\r\n\r\n" + flat()),
    "a header's name": form(SECRET + b": x\r\n\r\n" + flat()),
    "no picture": form(disposition(b"image", SECRET) + b"no"),
    "an empty picture": form(disposition(b"image", SECRET)),
    "half a picture": form(disposition(b"image", SECRET) + flat()[:-30]),
    "another field": form(disposition(SECRET, b"a.jpg") + flat()),
    "a long name": form(disposition(b"image", SECRET * 500) + flat()),
    "two pictures": form(*[disposition(b"image", SECRET) + flat()] * 2),
    "a length": form(disposition(b"image", b"a", b"\r\nContent-Length: " + SECRET) + flat()),
    "a boundary": {
        "data": flat(), "content_type": "multipart/form-data; boundary=K\xf6ln-secret",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_what_a_client_calls_its_files_is_shown_nowhere(
    name: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        answer = client.post("/predict", **LEAKS[name])
    assert answer.status_code in (400, 415, 422)
    for shown in (answer.text, str(answer.headers), caplog.text):
        assert "secret" not in shown
        assert "ln-" not in shown


# ---------------------------------------------------------------------------- devices and queues


def starting(folder: Path, deadline_s: float) -> Service:
    """A service whose device never becomes ready, with room for one picture."""
    path = colour_model.write(folder / "colour.tflite")
    told = {"model": str(path), "run_dir": folder, "queue": 1, "deadline_s": deadline_s}
    return build_service(make_settings(**told))


def test_a_picture_that_no_device_takes_in_time_is_504(tmp_path: Path) -> None:
    began = time.monotonic()
    client = client_of(starting(tmp_path, deadline_s=0.3))
    refused(client.predict(flat()), "504 deadline_exceeded")
    assert time.monotonic() - began >= 0.3


def test_a_full_queue_is_503_at_once_with_the_time_to_try_again(tmp_path: Path) -> None:
    service = starting(tmp_path, deadline_s=3)
    with ThreadPoolExecutor(1) as others:
        waiting = others.submit(client_of(service).predict, flat())
        wait_for(lambda: service.pool.queue_depth == 1)
        answer = client_of(service).predict(flat())
        assert waiting.running()
        refused(answer, "503 busy")
        assert answer.headers["Retry-After"] == "1"
        refused(waiting.result(), "504 deadline_exceeded")
    assert service.pool.queue_depth == 0


def test_more_uploads_at_once_than_memory_is_set_aside_for_are_503(
    make_client: MakeClient, service: Service
) -> None:
    client = make_client(queue=1)
    most = admitted(service.settings.model_copy(update={"queue": 1}))

    def upload(end: socket.socket, number: int) -> int:
        with end.makefile("rb") as body:
            answer = client.application.test_client().post(
                "/predict",
                content_type="image/jpeg",
                environ_overrides={
                    "CONTENT_LENGTH": "1000",
                    "wsgi.input": body,
                    "REMOTE_ADDR": f"192.0.2.{number}",
                },
            )
        return answer.status_code

    with ThreadPoolExecutor(most) as others, contextlib.ExitStack() as ours:
        uploads = []
        with contextlib.ExitStack() as theirs:  # closed first, which ends the uploads
            for number in range(most):
                our_end, their_end = socket.socketpair()
                ours.enter_context(our_end)
                theirs.enter_context(their_end).sendall(b"\xff")
                uploads.append(others.submit(upload, our_end, number))
                wait_for(lambda end=our_end: unread(end) == 0)  # type: ignore[misc]
            answer = client.predict(flat())
            refused(answer, "503 busy")
            assert answer.headers["Retry-After"] == "1"
            assert client.get("/health").status_code == 200
        assert [each.result() for each in uploads] == [400] * most
    assert client.predict(flat()).status_code == 200


def unread(end: socket.socket) -> int:
    """How many bytes wait to be received."""
    (count,) = struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, bytes(4)))
    return int(count)


def test_a_model_that_no_device_here_can_run_is_503(tmp_path: Path) -> None:
    path = colour_model.write(tmp_path / "colour_edgetpu.tflite", for_edgetpu=True)
    service = build_service(make_settings(model=str(path), run_dir=tmp_path))
    answer = client_of(service).predict(flat())
    said = refused(answer, "503 no_device")
    assert "model colour_edgetpu runs on edgetpu only" in said
    assert "REEF_MODEL_CPU" in said
    assert int(answer.headers["Retry-After"]) > 0


# ---------------------------------------------------------------------------- bugs


def test_a_bug_is_500_in_the_same_form_and_the_log_has_it_under_the_request_id(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.application.add_url_rule("/bug", view_func=lambda: str(1 // 0))
    answer = client.get("/bug", headers={"X-Request-ID": "look-for-me"})
    said = refused(answer, "500 internal_error")
    assert "ZeroDivisionError" not in said
    (logged,) = [entry for entry in caplog.records if entry.exc_info]
    assert logged.__dict__["request_id"] == "look-for-me"
    assert "ZeroDivisionError" in caplog.text


def test_no_thread_is_left_behind(client: Client) -> None:
    before = threading.active_count()
    for _ in range(20):
        client.predict(b"")
        client.predict(flat())
    assert threading.active_count() <= before
