"""Images of rows, by TRL's rules, and what is said about those that cannot be used."""

import io
import json

import pytest
from seeing import picture

from estune.common.images import ImageFile, images_in, opened
from estune.errors import DataError
from estune.run.data_fingerprint import digest
from estune.tasks.rows import load_rows, rows_of

Image = pytest.importorskip("PIL.Image")

ASK = [{"role": "user", "content": "what is it"}]


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def one(**row):
    [made] = rows_of([{"prompt": ASK} | row], "train_dataset")
    return made


def parts(row):
    return [part["type"] for part in row["prompt"][0]["content"]]


def test_images_come_before_the_first_user_message(tmp_path):
    assert parts(one(image=picture("red"))) == ["image", "text"]
    assert parts(one(images=[picture("red"), picture("blue")])) == ["image", "image", "text"]
    prompt = [{"role": "system", "content": "be brief"}, *ASK]
    row = one(prompt=prompt, image=picture("red"))
    assert row["prompt"][0]["content"] == "be brief"
    assert [part["type"] for part in row["prompt"][1]["content"]] == ["image", "text"]


def test_images_fill_their_places_in_order():
    red, blue = picture("red"), picture("blue")
    content = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]
    row = one(prompt=[{"role": "user", "content": content}], images=[red, blue])
    assert parts(row) == ["image", "text", "image"]
    assert [image.open().getpixel((20, 1)) for image in images_in(row["prompt"])] == [
        (255, 0, 0),
        (0, 0, 255),
    ]


@pytest.mark.parametrize("form", ["PIL", "path", "bytes", "datasets", "in the message"])
def test_an_image_may_be_given_in_each_form(form, tmp_path):
    image = picture("green")
    (tmp_path / "a.png").write_bytes(png(image))
    forms = {
        "PIL": {"image": image},
        "path": {"image": str(tmp_path / "a.png")},
        "bytes": {"image": png(image)},
        "datasets": {"image": {"bytes": png(image), "path": None}},
        "in the message": {
            "prompt": [{"role": "user", "content": [{"type": "image", "image": image}]}]
        },
    }
    row = one(**forms[form])
    [found] = images_in(row["prompt"])
    assert found.open().tobytes() == image.tobytes()
    [shown] = opened([row])
    assert shown["prompt"][0]["content"][0]["image"].size == image.size


def test_an_image_column_of_datasets_is_kept_undecoded():
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    prompt = List({"role": Value("string"), "content": Value("string")})
    features = Features({"prompt": prompt, "images": List(ImageFeature())})
    data = Dataset.from_list([{"prompt": ASK, "images": [picture("red")]}], features=features)
    [row] = rows_of(data, "train_dataset")
    assert parts(row) == ["image", "text"]
    assert all(isinstance(image, ImageFile) for image in row["images"])


def test_paths_in_a_file_begin_in_its_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png(picture("red")))
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": ASK, "image": "a.png"}) + "\n")
    [row] = load_rows(str(file), "train")
    assert len(images_in(row["prompt"])) == 1


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    first, again, other = (digest([one(image=png(picture(c)))]) for c in ("red", "red", "blue"))
    assert first == again != other
    assert digest([one(image=picture("red"))]) == digest([one(image=picture("red"))])


BAD = {
    "no such file": ({"image": "no/such.png"}, "column 'image': no/such.png cannot be read"),
    "no image": ({"image": b"hello"}, "is no image that can be decoded"),
    "torn": ({"image": png(picture("red"))[:80]}, "is no image that can be decoded"),
    "address": ({"image": "https://a.b/c.png"}, "is an address; download it"),
    "a number": ({"image": 7}, "is a int; give a PIL image"),
    "one in images": ({"images": "a.png"}, "column 'images' must be a list of images"),
    "places": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "has 0 images for 1 places",
    ),
    "postscript": ({"image": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "is no image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_one_line_that_names_the_row(case):
    row, said = BAD[case]
    with pytest.raises(DataError, match=r"^train_dataset: row 0: ") as error:
        one(**row)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_of_too_many_pixels_is_refused(monkeypatch):
    data = png(picture("red"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(DataError, match="has more than 300 pixels; scale it down"):
        one(image=data)


def test_a_file_that_changed_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(picture("red")))
    [image] = images_in(one(image=str(path))["prompt"])
    path.write_bytes(png(picture("blue")))
    with pytest.raises(DataError, match="changed since the run began"):
        image.open()
