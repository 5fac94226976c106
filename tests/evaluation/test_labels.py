from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anoscan.core.errors import InputError, UsageError
from anoscan.evaluation.labels import MASK_SUFFIXES, gather
from anoscan.images import formats
from anoscan.images.decode import UPRIGHT, Decoded, ImageRule, decode
from anoscan.images.files import ImageFile
from anoscan.images.layout import training_paths
from anoscan.images.masks import read_mask

RULE = ImageRule(size=16, channels=1, window=None)
EXIF_ORIENTATION = 0x0112
WIDE, HIGH = 7, 5
PATTERN = np.zeros((HIGH, WIDE), np.uint8)
PATTERN[0, :3] = PATTERN[1:4, 6] = 255  # no turn or reflection of it is like another


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def masks_by_image(csv: Path, masks: Path | None) -> dict[str, str | None]:
    found = gather(csv, None, masks)
    return {
        i.image.path: i.mask and i.mask.relative_to(csv.parent).as_posix() for i in found.images
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touched(
        tmp_path,
        *("queries/a.jpg", "queries/b.x.png", "queries/deep/c.png", "queries/d.tif"),
        *("masks/queries/a.png", "masks/b.x_mask.png", "masks/deep/c.bmp", "masks/c.png"),
    )


def test_masks_are_found_by_name_with_or_without_the_shared_folder(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text(
        "path,label\nqueries/a.jpg,1\nqueries/b.x.png,1\nqueries/deep/c.png,1\nqueries/d.tif,0\n"
    )
    assert masks_by_image(csv, root / "masks") == {
        "queries/a.jpg": "masks/queries/a.png",
        "queries/b.x.png": "masks/b.x_mask.png",
        "queries/deep/c.png": "masks/deep/c.bmp",
        "queries/d.tif": None,
    }


def test_the_mask_of_an_image_in_another_folder_is_not_taken(tmp_path: Path) -> None:
    touched(tmp_path, "hole/1.png", "good/1.png", "masks/1.png", "masks/hole/1.png")
    csv = tmp_path / "labels.csv"
    csv.write_text("path,label\nhole/1.png,1\ngood/1.png,0\n")
    found = masks_by_image(csv, tmp_path / "masks")
    assert found == {"hole/1.png": "masks/hole/1.png", "good/1.png": None}


def test_an_image_is_not_its_own_mask(tmp_path: Path) -> None:
    touched(tmp_path, "1.png", "2.png", "2_mask.png")
    csv = tmp_path / "labels.csv"
    csv.write_text("path,label\n1.png,1\n2.png,1\n")
    assert masks_by_image(csv, tmp_path) == {"1.png": None, "2.png": "2_mask.png"}


def test_masks_of_the_csv_come_before_those_of_the_folder(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text(
        "path,label,mask\nqueries/a.jpg,1,masks/c.png\nqueries/b.x.png,1,deep/c.bmp\n"
        "queries/d.tif,1,gone.png\nqueries/deep/c.png,1,\n"
    )
    assert list(masks_by_image(csv, root / "masks").values()) == [
        "masks/c.png",
        "masks/deep/c.bmp",
        None,
        "masks/deep/c.bmp",
    ]
    plain = gather(csv, None, None)
    assert plain.masks
    assert plain.images[3].mask is None


def test_masks_of_the_csv_may_lie_beside_it_when_the_images_do_not(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text("path,label,mask\na.jpg,1,masks/c.png\nd.tif,1,deep/c.png\n")
    found = gather(csv, root / "queries", None)
    assert [item.mask for item in found.images] == [
        root / "masks/c.png",
        root / "queries/deep/c.png",
    ]


def test_pixels_are_measured_only_where_there_are_masks(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text("path,label,mask\nqueries/a.jpg,1,\n")
    assert not gather(csv, None, None).masks
    assert gather(csv, None, root / "masks").masks


def test_masks_that_fit_no_image_are_an_error_that_shows_a_name(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text("path,label\nqueries/a.jpg,0\nqueries/d.tif,1\n")
    with pytest.raises(InputError, match="none of the masks") as caught:
        gather(csv, None, touched(root / "other", "e.png"))
    assert "d_mask.png" in (caught.value.hint or "")
    with pytest.raises(InputError, match="does not exist"):
        gather(csv, None, root / "nowhere")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return touched(
        tmp_path / "bottle",
        *("train/good/0.png", "train/bad/0.png", "test/good/0.png", "test/loose.png"),
        *("test/hole/0.png", "test/hole/1.png", "test/big crack/0.tif"),
        *("ground_truth/hole/0_mask.png", "ground_truth/big crack/0.png"),
    )


def test_the_layout_of_mvtec_is_labels_types_and_masks(layout: Path) -> None:
    found = gather(None, layout, None)
    rows = [
        (i.image.inside, i.anomalous, i.cls, i.mask and i.mask.relative_to(layout).as_posix())
        for i in found.images
    ]
    assert rows == [
        ("big crack/0.tif", True, "big crack", "ground_truth/big crack/0.png"),
        ("good/0.png", False, "good", None),
        ("hole/0.png", True, "hole", "ground_truth/hole/0_mask.png"),
        ("hole/1.png", True, "hole", None),
    ]
    assert found.images[0].image.path == (layout / "test/big crack/0.tif").as_posix()
    assert (found.masks, found.unlabelled) == (True, 1)


def test_the_layout_without_masks_has_labels_all_the_same(tmp_path: Path) -> None:
    touched(tmp_path, "test/good/0.png", "test/ng/0.png")
    found = gather(None, tmp_path, None)
    assert [item.anomalous for item in found.images] == [False, True]
    assert not found.masks


def test_a_model_given_as_the_folder_of_images_is_said_to_be_an_option(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text("path,label\nqueries/a.jpg,1\n")
    with pytest.raises(InputError, match=r"exists under .*bolts") as caught:
        gather(csv, root / "bolts", None)
    assert "--model" in (caught.value.hint or "")


def test_what_lies_elsewhere_beside_a_csv_is_not_called_unlabelled(tmp_path: Path) -> None:
    root = touched(
        tmp_path, "q/a.png", "q/b.png", "q/notes.txt", "q/.c.png", "q/maps/a.png", "d.png"
    )
    csv = root / "labels.csv"
    csv.write_text("path,label\nq/a.png,0\n")
    assert gather(csv, None, None).unlabelled == 1
    csv.write_text("path,label\na.png,0\n")
    assert gather(csv, root / "q", None).unlabelled == 2


def test_folders_that_say_nothing_of_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels"):
        gather(None, touched(tmp_path / "a", "good/0.png"), None)
    with pytest.raises(InputError, match="none in folders of types"):
        gather(None, touched(tmp_path / "b", "test/0.png"), None)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        *(("good", "bad"), ("OK", "NG"), ("Normal", "Anomaly"), ("0", "1"), ("ok", "anomalous")),
        *(("good", "abnormal"), ("good", "Defects"), ("good", "defect_7")),
    ],
)
def test_folders_of_good_and_bad_images_are_labels(tmp_path: Path, good: str, bad: str) -> None:
    touched(tmp_path, f"{good}/0.png", f"{good}/deep/1.png", f"{bad}/2.png", "other/3.png", "4.png")
    found = gather(None, tmp_path, None)
    assert {(i.image.inside, i.anomalous, i.cls) for i in found.images} == {
        (f"{good}/0.png", False, None),
        (f"{good}/deep/1.png", False, None),
        (f"{bad}/2.png", True, None),
    }
    assert (found.unlabelled, found.masks) == (2, False)


def test_several_bad_folders_are_classes_and_masks_lie_beside_them(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *("good/0.png", "defect_hole/1.png", "defect_scratch/2.png", "ng/3.png"),
        *("ground_truth/defect_hole/1_mask.png", "ground_truth/bad/9.png"),
    )
    found = gather(None, tmp_path, None)
    assert [(i.image.inside, i.anomalous, i.cls, i.mask is not None) for i in found.images] == [
        ("defect_hole/1.png", True, "defect_hole", True),
        ("defect_scratch/2.png", True, "defect_scratch", False),
        ("good/0.png", False, "good", False),
        ("ng/3.png", True, "ng", False),
    ]
    assert (found.unlabelled, found.masks) == (0, True)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["good/0.png"], "has a folder of good images, but none of bad ones"),
        (["ng/0.png"], "has a folder of bad images, but none of good ones"),
        (["a/0.png"], "is none of these"),
    ],
)
def test_what_folders_lack_is_said(tmp_path: Path, names: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        gather(None, touched(tmp_path, *names), None)
    for way in ("--labels FILE", "test/good", "bad|ng|anomaly|anomalous|abnormal|1|defect*"):
        assert way in caught.value.message
    with pytest.raises(UsageError, match="is no folder"):
        gather(None, tmp_path / "nowhere", None)


def test_folders_of_good_and_bad_images_need_images_in_both(tmp_path: Path) -> None:
    touched(tmp_path, "good/0.png", "bad/notes.txt")
    with pytest.raises(InputError, match="good images only"):
        gather(None, tmp_path, None)


ANOMALIB = """path,split,label,image_path,label_index,mask_path
data/bottle,train,good,train/good/0.png,0,
data/bottle,test,good,test/good/0.png,0,
data/bottle,test,hole,test/hole/0.png,1,ground_truth/hole/0_mask.png
data/bottle,Split.TRAIN,good,train/good/1.png,0,
"""


def test_a_csv_of_anomalib_is_read_without_its_training_rows(tmp_path: Path) -> None:
    touched(
        tmp_path,
        *("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/hole/0.png"),
        "ground_truth/hole/0_mask.png",
    )
    csv = tmp_path / "samples.csv"
    csv.write_text(ANOMALIB)
    found = gather(csv, None, None)
    assert [(i.image.path, i.anomalous, i.cls, i.mask) for i in found.images] == [
        ("test/good/0.png", False, "good", None),
        ("test/hole/0.png", True, "hole", tmp_path / "ground_truth/hole/0_mask.png"),
    ]
    assert (found.training, found.missing, found.masks) == (2, (), True)


def test_a_csv_of_training_rows_alone_is_refused(tmp_path: Path) -> None:
    csv = touched(tmp_path, "a.png") / "labels.csv"
    csv.write_text("path,label,split\na.png,0,train\n")
    with pytest.raises(InputError, match=r"all 1 rows of .* are of the split 'train'"):
        gather(csv, None, None)


def test_only_the_good_images_of_the_layout_are_learned_from(layout: Path) -> None:
    plain = layout.parent / "plain"
    paths, note = training_paths([str(layout), plain])
    assert paths == [layout / "train/good", plain]
    assert str(layout / "train/good") in (note or "")
    assert training_paths([plain, layout / "train"]) == ([plain, layout / "train"], None)


Decode = Callable[..., Decoded]


@pytest.fixture
def decoded(tmp_path: Path) -> Decode:
    def of(orientation: int, width: int = WIDE, height: int = HIGH) -> Decoded:
        picture = Image.new("L", (width, height), 9)
        picture.getexif()[EXIF_ORIENTATION] = orientation
        picture.save(tmp_path / "image.png", exif=picture.getexif())
        return decode(ImageFile("image.png", tmp_path / "image.png", "image.png"), RULE)

    return of


def saved(file: Path, picture: Image.Image, orientation: int = 1) -> Path:
    picture.getexif()[EXIF_ORIENTATION] = orientation
    picture.save(file, exif=picture.getexif())
    return file


def of_mode(mode: str) -> Image.Image:
    if mode == "P":
        picture = Image.fromarray(1 - PATTERN // 255)
        picture.putpalette([200, 0, 0, 0, 0, 0])  # the first colour marks, as some programs write
        return picture
    if mode in ("I;16", "I"):
        return Image.fromarray((PATTERN // 255).astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "RGB":
        return Image.merge("RGB", [Image.new("L", (WIDE, HIGH)), *2 * [Image.fromarray(PATTERN)]])
    return Image.fromarray(PATTERN).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_whatever_is_not_black_is_marked(tmp_path: Path, decoded: Decode, mode: str) -> None:
    mask = read_mask(saved(tmp_path / "mask.png", of_mode(mode)), decoded(1))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, PATTERN > 0)


def test_faint_marks_count_and_the_noise_of_a_jpeg_does_not(
    tmp_path: Path, decoded: Decode
) -> None:
    faint = saved(tmp_path / "faint.png", Image.fromarray(PATTERN // 255))
    np.testing.assert_array_equal(read_mask(faint, decoded(1)), PATTERN > 0)
    large = np.kron(PATTERN, np.ones((16, 16), np.uint8))
    file = tmp_path / "mask.jpg"
    Image.fromarray(large).save(file, quality=60)
    found = read_mask(file, decoded(1, 16 * WIDE, 16 * HIGH))
    np.testing.assert_array_equal(found, large > 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_with_their_image(tmp_path: Path, decoded: Decode, orientation: int) -> None:
    image = decoded(orientation)
    stored = Image.fromarray(PATTERN)
    upright = stored
    if orientation != 1:
        upright = stored.transpose(UPRIGHT[orientation])
    expected = np.asarray(upright) > 0
    assert expected.shape == ((WIDE, HIGH) if orientation >= 5 else (HIGH, WIDE))
    in_stored_pixels = saved(tmp_path / "plain.png", stored)
    np.testing.assert_array_equal(read_mask(in_stored_pixels, image), expected)
    with_its_own_tag = saved(tmp_path / "tagged.png", stored, orientation)
    np.testing.assert_array_equal(read_mask(with_its_own_tag, image), expected)
    if orientation >= 5:
        np.testing.assert_array_equal(
            read_mask(saved(tmp_path / "upright.png", upright), image), expected
        )


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path, decoded: Decode) -> None:
    file = saved(tmp_path / "mask.png", Image.new("L", (HIGH, WIDE)))
    with pytest.raises(InputError, match="mask of 5x7 pixels for an image of 7x5"):
        read_mask(file, decoded(1))
    with pytest.raises(InputError, match="does not exist"):
        read_mask(tmp_path / "none.png", decoded(1))


def test_suffixes_of_masks_are_those_of_lossless_images() -> None:
    assert set(MASK_SUFFIXES) <= formats.EXTENSIONS
    assert ".jpg" not in MASK_SUFFIXES
