"""`POST /predict`: pictures in, detections out."""

import gzip
import io
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from app.http import create_app
from app.service import Service
from app.stages import STAGES
from tests.http.conftest import COLOUR, DEFAULT, Client, MakeClient, refused
from tests.support import (
    BLACK,
    BLUE,
    CAT,
    GREEN,
    RED,
    ROOT,
    as_a_camera_stores_it,
    encode,
    exif,
    flat,
    form,
    part,
)

PERSON = ROOT / "models" / "selftest_person.jpg"
TEAL = (0, 128, 128)

Box = tuple[float, float, float, float]


def classes(answer: Any) -> list[str]:
    """The classes found, best first."""
    return [each["class"] for each in answer.json["predictions"]]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    both = area(
        max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    )
    return both / (area(*one) + area(*other) - both)


# ---------------------------------------------------------------------------- the answer


def test_the_answer_has_exactly_what_was_promised(client: Client) -> None:
    answer = client.predict(flat(RED, (64, 48)))
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    body = answer.json
    assert set(body) == {
        "predictions", "inference_time", "model", "device", "degraded", "image", "timings",
        "request_id",
    }  # fmt: skip
    (found,) = body["predictions"]
    assert found["bbox"] == [16.0, 12.0, 48.0, 36.0]
    assert found["class"] == "red"
    assert found["score"] == pytest.approx(1, abs=0.02)
    assert (body["model"], body["device"], body["degraded"]) == (COLOUR, "cpu", False)
    assert body["image"] == {"width": 64, "height": 48}


def test_the_first_two_keys_are_the_contract(client: Client) -> None:
    assert list(client.predict(flat()).json)[:2] == ["predictions", "inference_time"]


def test_every_stage_is_timed_once_and_shown_everywhere(client: Client) -> None:
    answer = client.predict(encode(Image.new("RGB", (1920, 1080), RED), "JPEG"))
    timings = answer.json["timings"]
    assert list(timings) == [*STAGES, "total"]
    assert all(milliseconds >= 0 for milliseconds in timings.values())
    assert timings["decode"] > 0
    assert sum(timings[stage] for stage in STAGES) <= timings["total"] + 0.1
    assert answer.json["inference_time"] == timings["inference"] > 0
    shown = answer.headers["Server-Timing"]
    assert shown == ", ".join(f"{stage};dur={timings[stage]:g}" for stage in timings)


def test_nothing_found_is_200_with_an_empty_list(client: Client) -> None:
    answer = client.predict(flat(BLACK))
    assert answer.status_code == 200
    assert answer.json["predictions"] == []


def test_predictions_are_sorted_by_score(client: Client) -> None:
    answer = client.predict(flat((90, 200, 150)), "min_score=0")
    assert classes(answer) == ["green", "blue", "red"]
    scores = [each["score"] for each in answer.json["predictions"]]
    assert scores == sorted(scores, reverse=True)


# ---------------------------------------------------------------------------- real pictures


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_cat_is_found_in_every_format(kind: str, client: Client) -> None:
    cat = Image.open(CAT).convert("RGB")
    answer = client.predict(encode(cat, kind), f"model={DEFAULT}")
    assert classes(answer)[0] == "cat"
    assert answer.json["image"] == {"width": 451, "height": 300}
    assert answer.json["model"] == DEFAULT


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cat_is_found_upright_however_the_camera_was_held(
    orientation: int, client: Client
) -> None:
    upright = Image.open(CAT).convert("RGB")
    stored = as_a_camera_stores_it(upright, orientation)
    held = client.predict(encode(stored, "JPEG", exif=exif(orientation)), f"model={DEFAULT}")
    straight = client.predict(encode(upright, "JPEG"), f"model={DEFAULT}")
    assert held.json["image"] == straight.json["image"]
    assert classes(held)[0] == classes(straight)[0] == "cat"
    boxes = [tuple(answer.json["predictions"][0]["bbox"]) for answer in (held, straight)]
    assert overlap(boxes[0], boxes[1]) > 0.9


def test_people_are_found_and_every_box_lies_in_the_picture(client: Client) -> None:
    answer = client.predict(PERSON.read_bytes(), f"model={DEFAULT}&min_score=0&max_results=1000")
    assert classes(answer)[0] == "person"
    width, height = answer.json["image"]["width"], answer.json["image"]["height"]
    assert 50 < len(answer.json["predictions"]) <= 100
    for each in answer.json["predictions"]:
        x1, y1, x2, y2 = each["bbox"]
        assert 0 <= x1 <= x2 <= width
        assert 0 <= y1 <= y2 <= height
        assert 0 <= each["score"] <= 1


# ---------------------------------------------------------------------------- ways to send it


@pytest.mark.parametrize(
    "kind",
    ["image/jpeg", "image/png", "image/*", "IMAGE/JPEG", "image/jpeg; charset=binary",
     "image/x-anything", "application/octet-stream"],
)  # fmt: skip
def test_a_raw_body_is_taken_whatever_picture_its_type_says(kind: str, client: Client) -> None:
    assert classes(client.predict(flat(), kind=kind)) == ["red"]


@pytest.mark.parametrize(
    "filename",
    [None, "", "cat.jpg", "cat.png", "cat", "../../etc/passwd", "C:\\\\cat.jpg", "x" * 300 + ".jpg",
     "猫.jpg", "\u202egpj.exe", "%00.jpg", "a\x00b.jpg", "a;b=c.jpg"],
)  # fmt: skip
def test_the_field_image_is_taken_whatever_its_filename(
    filename: str | None, client: Client
) -> None:
    answer = client.post("/predict", **form(part("image", flat(), filename)))
    assert classes(answer) == ["red"]


FILENAMES = {
    "UTF-8": "Küche 猫.jpg".encode(),
    "Latin 1": "Küche.jpg".encode("latin-1"),
    "Windows-1252": "“Küche”.jpg".encode("cp1252"),
    "Windows-1251": "кошка.jpg".encode("cp1251"),
    "KOI8-R": "кошка.jpg".encode("koi8-r"),
    "Shift-JIS": "猫.jpg".encode("shift-jis"),
    "Shift-JIS with a backslash in a letter": "表".encode("shift-jis"),
    "ISO-2022-JP with a quote in a letter": "あ日本.jpg".encode("iso-2022-jp"),
    "EUC-JP": "猫.jpg".encode("euc-jp"),
    "EUC-KR": "고양이.jpg".encode("euc-kr"),
    "GB 18030": "厨房猫.jpg".encode("gb18030"),
    "Big5 with a backslash in a letter": "功.jpg".encode("big5"),
    "UTF-16": "猫.jpg".encode("utf-16-le"),
    "no charset": bytes(set(range(256)) - {10, 13}),
}


@pytest.mark.parametrize(
    "filename", ["; name=foo; ", 'a; name=\\"x\\".jpg', "; filename=", "C:\\x.jpg"]
)
def test_what_looks_like_a_name_within_a_filename_is_none(filename: str, client: Client) -> None:
    head = f'Content-Disposition: form-data; filename="{filename}"; name="image"'.encode()
    assert client.post("/predict", **form(head + b"\r\n\r\n" + flat())).status_code == 200


@pytest.mark.parametrize("first", ["name", "filename"])
@pytest.mark.parametrize("charset", FILENAMES)
def test_a_filename_may_be_in_any_charset(charset: str, first: str, client: Client) -> None:
    named, filename = b'name="image"', b'filename="' + FILENAMES[charset] + b'"'
    order = (named, filename) if first == "name" else (filename, named)
    raw = b"Content-Disposition: form-data; " + b"; ".join(order) + b"\r\n\r\n" + flat()
    answer = client.post("/predict", **form(part("min_score", "0.5"), raw))
    assert classes(answer) == ["red"]


@pytest.mark.parametrize("charset", FILENAMES)
def test_a_file_beside_the_picture_is_no_text_whatever_its_name(
    charset: str, client: Client
) -> None:
    beside = b'Content-Disposition: form-data; name="other"; filename="' + FILENAMES[charset] + b'"'
    large = beside + b"\r\n\r\n" + bytes(100_000)
    assert classes(client.post("/predict", **form(large, part("image", flat())))) == ["red"]


def test_a_filename_may_be_written_as_rfc_5987_has_it(client: Client) -> None:
    raw = b"Content-Disposition: form-data; name=image; filename*=UTF-8''K%C3%BCche.jpg\r\n\r\n"
    assert classes(client.post("/predict", **form(raw + flat()))) == ["red"]


BOUNDARIES = ["----=_Part_0_12.34", "a=b", "=", "===", "a b", "(a)", "a,b", "a/b:c?d", "'quoted'",
              "x" * 200, "----WebKitFormBoundary7MA4YWxkTrZu0gW", "gr\xfcn"]  # fmt: skip


@pytest.mark.parametrize(
    "filename",
    [
        b"; name=foo; ", rb"a; name=\"x\".jpg", rb'a\"; name=\"x.jpg', b'a "b"; name.jpg',
        "\u8868".encode("shift_jis"), b'a; x="b',
    ],
)  # fmt: skip
def test_a_name_within_a_filename_is_none(filename: bytes, client: Client) -> None:
    quoted = b'filename="' + filename + b'"'
    for parameters in (quoted + b'; name="image"', b'name="image"; ' + quoted):
        head = b"Content-Disposition: form-data; " + parameters
        answer = client.post("/predict", **form(head + b"\r\n\r\n" + flat()))
        assert classes(answer) == ["red"], answer.text


@pytest.mark.parametrize("ahead", ["; boundary=", "; Boundary = ", ";charset=utf-8;boundary="])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_boundary_may_be_written_as_clients_do(boundary: str, ahead: str, client: Client) -> None:
    line = b"--" + boundary.encode("latin-1")
    body = line + b"\r\n" + part("image", flat()) + b"\r\n" + line + b"--\r\n"
    for written in (boundary, f'"{boundary}"', f"{boundary} ; charset=utf-8"):
        kind = f"multipart/form-data{ahead}{written}"
        assert classes(client.post("/predict", data=body, content_type=kind)) == ["red"]


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "gzip, identity": gzip.compress,
    "deflate": zlib.compress,
    " deflate ": lambda body: zlib.compress(body, wbits=-15),  # what many clients call so
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_may_be_compressed(coding: str, client: Client) -> None:
    headers = {"Content-Encoding": coding}
    picture = CODINGS[coding](flat())
    raw = client.post("/predict", data=picture, content_type="image/jpeg", headers=headers)
    assert classes(raw) == ["red"]
    sent = form(part("image", flat()), part("min_score", "0.5"))
    sent["data"] = CODINGS[coding](sent["data"])
    assert classes(client.post("/predict", **sent, headers=headers)) == ["red"]


def test_a_gzip_may_have_several_members(client: Client) -> None:
    picture = flat()
    body = gzip.compress(picture[:300]) + gzip.compress(picture[300:])
    headers = {"Content-Encoding": "gzip"}
    answer = client.post("/predict", data=body, content_type="image/jpeg", headers=headers)
    assert classes(answer) == ["red"]


def test_a_slash_at_the_end_makes_no_difference(client: Client) -> None:
    answer = client.post("/predict/?min_score=0.5", data=flat(), content_type="image/jpeg")
    assert classes(answer) == ["red"]
    assert refused(client.get("/predict/"), "405 method_not_allowed")
    assert 'route="/predict"' in client.get("/metrics").text


@pytest.mark.parametrize("headers", [(), ("Content-Type: image/png",), ("Content-Type: text/x",)])
def test_the_parts_own_type_does_not_matter(headers: tuple[str, ...], client: Client) -> None:
    answer = client.post("/predict", **form(part("image", flat(), "x", headers=headers)))
    assert classes(answer) == ["red"]


def test_a_form_as_flask_and_requests_make_it_is_taken(client: Client) -> None:
    answer = client.post(
        "/predict", data={"image": (io.BytesIO(flat()), "cat.jpg"), "min_score": "0.5"}
    )
    assert classes(answer) == ["red"]


@pytest.mark.parametrize(
    "disposition",
    ['form-data; name="image"', "form-data; name=image", 'form-data; filename="a"; name="image"',
     "FORM-DATA; name=image;filename=a.jpg"],
)  # fmt: skip
def test_the_disposition_may_be_written_as_clients_do(disposition: str, client: Client) -> None:
    raw = f"Content-Disposition: {disposition}\r\n\r\n".encode() + flat()
    assert classes(client.post("/predict", **form(raw))) == ["red"]


def test_other_fields_and_files_do_no_harm(client: Client) -> None:
    parts = (part("camera", "garden"), part("thumbnail", flat(BLUE), "t.jpg"),
             part("image", flat(), "a.jpg"), part("note", "grün 猫"))  # fmt: skip
    assert classes(client.post("/predict", **form(*parts))) == ["red"]


def test_a_picture_that_contains_the_boundary_nearly_is_taken_whole(client: Client) -> None:
    picture = flat() + b"\r\n--frontie\r\n--fronti\r\n-\r\r\n--"
    assert classes(client.post("/predict", **form(part("image", picture), boundary="frontier")))


def test_sixteen_parts_are_taken(client: Client) -> None:
    parts = [part(f"note{number}", "x") for number in range(15)]
    assert classes(client.post("/predict", **form(*parts, part("image", flat())))) == ["red"]


def test_a_body_without_its_length_is_taken(client: Client) -> None:
    """As gunicorn hands on a chunked body."""
    answer = client.post(
        "/predict",
        data=flat(),
        content_type="image/jpeg",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    )
    assert classes(answer) == ["red"]


# ---------------------------------------------------------------------------- parameters

MIN_SCORES = ["0", "0.0", "1", "1.", ".5", "0.5", "5e-1", "1e-9", "%200.5%20", "00.5"]


@pytest.mark.parametrize("text", MIN_SCORES)
def test_min_score_takes_any_number_from_0_to_1(text: str, client: Client) -> None:
    answer = client.predict(flat((230, 190, 10)), f"min_score={text}")
    assert answer.status_code == 200
    value = float(text.replace("%20", ""))
    assert all(each["score"] >= value for each in answer.json["predictions"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("min_score=0", ["red", "green", "blue"]),
        ("min_score=0.5", ["red", "green"]),
        ("min_score=0.5&max_results=1", ["red"]),
        ("max_results=1000", ["red", "green"]),
        ("labels=green", ["green"]),
        ("labels=green,red", ["red", "green"]),
        ("labels=%20green%20,,red", ["red", "green"]),
        ("labels=", ["red", "green"]),
        ("min_score=&max_results=&labels=&model=", ["red", "green"]),
        ("min_score=&min_score=0.5", ["red", "green"]),
        ("labels=blue", []),
        ("labels=blue&min_score=0", ["blue"]),
        ("labels=green,blue&max_results=1&min_score=0", ["green"]),
        (f"model={COLOUR}", ["red", "green"]),
        ("model=", ["red", "green"]),
    ],
)
def test_a_parameter_means_the_same_in_the_query_and_in_the_form(
    query: str, found: list[str], client: Client
) -> None:
    picture = flat((230, 190, 10))
    fields = [pair.replace("%20", " ").split("=") for pair in query.split("&")]
    parts = [part(name, value) for name, value in fields]
    assert classes(client.predict(picture, query)) == found
    assert classes(client.post("/predict", **form(part("image", picture), *parts))) == found
    assert classes(client.post("/predict", **form(*parts, part("image", picture)))) == found


def test_the_defaults_of_the_parameters_are_settings(make_client: MakeClient) -> None:
    picture = flat((230, 190, 150))
    assert classes(make_client(min_score=0.7).predict(picture)) == ["red", "green"]
    assert classes(make_client(max_results=1).predict(picture)) == ["red"]
    only_green = make_client(only_labels=("green",))
    assert classes(only_green.predict(picture)) == ["green"]
    assert classes(only_green.predict(picture, "labels=")) == ["green"]
    assert classes(only_green.predict(picture, "labels=blue")) == ["blue"]


def test_the_model_is_the_default_or_the_one_asked_for(make_client: MakeClient) -> None:
    client = make_client(default=DEFAULT)
    assert client.predict(flat()).json["model"] == DEFAULT
    assert client.predict(flat(), f"model={COLOUR}").json["model"] == COLOUR


def test_a_misspelt_label_is_refused_with_a_suggestion(client: Client) -> None:
    said = refused(client.predict(flat(), "labels=gren"), "400 bad_parameter")
    assert said == "labels: model colour has no label 'gren'; did you mean 'green'?"


# ---------------------------------------------------------------------------- request ids


@pytest.mark.parametrize("given", ["abc", "A-1._z", "x" * 64, "0"])
def test_a_sound_request_id_is_kept(given: str, client: Client) -> None:
    answer = client.post(
        "/predict", data=flat(), content_type="image/jpeg", headers={"X-Request-ID": given}
    )
    assert answer.headers["X-Request-ID"] == answer.json["request_id"] == given


@pytest.mark.parametrize("given", ["", " ", "x" * 65, "a b", "a;b", "é", "<b>", '"', "a\tb"])
def test_an_unsound_request_id_is_replaced(given: str, client: Client) -> None:
    answer = client.get("/health", headers={"X-Request-ID": given})
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Request-ID"] != given


def test_every_request_has_an_id_of_its_own(client: Client) -> None:
    assert len({client.get("/health").headers["X-Request-ID"] for _ in range(20)}) == 20


# ---------------------------------------------------------------------------- at once


def test_every_one_of_many_clients_gets_the_answer_to_its_own_picture(service: Service) -> None:
    app = create_app(service)
    chance = random.Random(3)
    reds = [chance.randrange(256) for _ in range(200)]

    def ask(red: int) -> int:
        picture = encode(Image.new("RGB", (32, 32), (red, 0, 0)), "PNG")
        answer: Any = app.test_client().post(
            "/predict?min_score=0&labels=red", data=picture, content_type="image/png"
        )
        score: float = answer.json["predictions"][0]["score"]
        return round(255 * score)

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(ask, reds)) == reds


@pytest.mark.parametrize(("colour", "name"), [(RED, "red"), (GREEN, "green"), (BLUE, "blue")])
def test_colours_come_in_the_right_order(
    colour: tuple[int, int, int], name: str, client: Client
) -> None:
    assert classes(client.predict(flat(colour))) == [name]


def test_two_models_answer_each_its_own(client: Client) -> None:
    cat = encode(Image.open(CAT).convert("RGB"), "JPEG")
    for _ in range(3):
        assert "cat" in classes(client.predict(cat, f"model={DEFAULT}"))
        assert "cat" not in classes(client.predict(cat, f"model={COLOUR}"))


def test_a_picture_in_two_tones_has_both(client: Client) -> None:
    assert set(classes(client.predict(flat(TEAL)))) == {"green", "blue"}
