"""Bytes in, bytes out: what must stay the same stays the same, what must go is gone."""

import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from u2s_datasets import image_metadata, jpeg_file
from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo

SECRET = b"Maria Lindqvist"
FORMATS = {
    "baseline 4:2:0": ("JPEG", {"subsampling": 2}),
    "progressive 4:2:2": ("JPEG", {"progressive": True, "subsampling": 1}),
    "4:4:4 low quality": ("JPEG", {"subsampling": 0, "quality": 35}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
}


def private_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:01:02 03:04:05"
    exif[ExifTags.Base.Artist] = SECRET.decode()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.BodySerialNumber] = "SN-1"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif


@pytest.fixture(scope="module")
def photo_of_641(astronaut):
    return Image.fromarray(astronaut).resize((641, 479))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_orientation(name, orientation, photo_of_641, encode):
    kind, options = FORMATS[name]
    data = encode(photo_of_641, kind, exif=private_exif(orientation), **options)
    photo = Photo(data)
    with Image.open(io.BytesIO(data)) as image:
        reference = np.asarray(_reference_upright(image).convert("RGB"))
    assert np.array_equal(photo.pixels, reference)

    clean = photo.published()
    assert np.array_equal(clean.pixels, photo.pixels)
    assert clean.metadata == []
    assert SECRET not in clean.data

    mask = np.zeros(photo.pixels.shape[:2], bool)
    mask[101:187, 130:207] = True
    edited = np.array(photo.pixels)
    edited[mask] = (40, 160, 90)
    result = photo.with_pixels(edited, mask)
    outside = ~photo.editable_area(mask)
    assert outside.mean() > 0.9
    assert np.array_equal(result.pixels[outside], photo.pixels[outside])
    assert np.abs(result.pixels[mask].astype(int) - (40, 160, 90)).mean() < 4
    assert result.metadata == []
    assert SECRET not in result.data


def _reference_upright(image):
    """An independent turn, from the EXIF standard's table of rows and columns."""
    image.load()  # Pillow turns a TIFF while loading it
    orientation = image.getexif().get(0x0112, 1)
    array = np.asarray(image.convert("RGB"))
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return Image.fromarray(np.ascontiguousarray(array))


def test_an_untouched_jpeg_keeps_its_compressed_pixels(photo_of_641, encode):
    data = encode(photo_of_641, exif=private_exif(), comment=SECRET, progressive=True)
    clean = Photo(data).published().data
    scans = [
        segment for marker, segment in jpeg_file.jpeg_segments(data) if marker in (0xDA, 0xDB, 0xC2, 0xC4)
    ]
    assert len(scans) > 8
    assert all(segment in clean for segment in scans)


def test_a_spliced_jpeg_keeps_the_format_and_the_size_of_its_file(photo_of_641, encode):
    photo = Photo(encode(photo_of_641, quality=88))
    mask = np.zeros((479, 641), bool)
    mask[40:90, 40:90] = True
    edited = np.array(photo.pixels)
    edited[mask] = 128
    result = photo.with_pixels(edited, mask)
    assert result.format == "JPEG"
    assert 0.8 < len(result.data) / len(photo.data) < 1.2


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (17, 33), (16, 16), (15, 8)])
def test_odd_sizes(size, encode):
    image = Image.effect_noise(size, 60).convert("RGB")
    for kind in ("JPEG", "PNG", "WEBP"):
        photo = Photo(encode(image, kind))
        mask = np.zeros(size[::-1], bool)
        mask[: size[1] // 2 + 1, : size[0] // 2 + 1] = True
        edited = np.array(photo.pixels)
        edited[mask] = 77
        result = photo.with_pixels(edited, mask)
        outside = ~photo.editable_area(mask)
        assert result.pixels.shape == photo.pixels.shape
        assert np.array_equal(result.pixels[outside], photo.pixels[outside])


def test_cmyk_grey_palette_and_sixteen_bits(astronaut, encode):
    image = Image.fromarray(astronaut)
    sixteen = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    cases = {
        "cmyk": encode(image.convert("CMYK")),
        "grey": encode(image.convert("L")),
        "palette": encode(image.quantize(64), "PNG"),
        "sixteen": encode(sixteen, "PNG"),
        "bilevel": encode(image.convert("1"), "PNG"),
        "alpha": encode(image.convert("RGBA"), "PNG"),
    }
    for name, data in cases.items():
        photo = Photo(data)
        assert photo.pixels.shape == (512, 512, 3), name
        assert photo.published().data == data or photo.published().metadata == [], name
        assert np.array_equal(photo.published().pixels, photo.pixels), name
        mask = np.zeros((512, 512), bool)
        mask[:100, :100] = True
        edited = np.array(photo.pixels)
        edited[mask] = 90
        outside = ~photo.editable_area(mask)
        assert np.array_equal(photo.with_pixels(edited, mask).pixels[outside], photo.pixels[outside]), name
    assert Photo(cases["sixteen"]).published().image.mode.startswith("I")
    assert np.array_equal(Photo(cases["sixteen"]).pixels[..., 0], np.asarray(image.convert("L")))


def test_what_transparency_hides_is_inspected_too(astronaut, encode):
    alpha = np.zeros((512, 512), np.uint8)
    alpha[:, 256:] = 255
    hidden = Photo(encode(Image.fromarray(np.dstack([astronaut, alpha])), "PNG"))
    plain, on_white, on_black = hidden.views
    assert np.array_equal(plain, astronaut)
    assert (on_white[:, :256] == 255).all()
    assert (on_black[:, :256] == 0).all()
    mask = np.zeros((512, 512), bool)
    mask[:50, :50] = True
    edited = np.array(hidden.pixels)
    edited[mask] = 200
    result = hidden.with_pixels(edited, mask)
    assert (result.views[1][:50, :50] == 200).all(), "an edited pixel must be opaque"
    assert np.array_equal(result.image.getchannel("A").crop((50, 0, 256, 512)), np.zeros((512, 206)))


def test_a_dark_sixteen_bit_image_is_also_shown_stretched(encode):
    dark = np.zeros((64, 64), np.uint16)
    dark[20:40, 20:40] = 200
    photo = Photo(encode(Image.fromarray(dark), "PNG"))
    assert photo.pixels.max() == 0
    assert photo.views[1].max() == 255


def test_frames_after_the_first_never_leave(astronaut, encode):
    first = Image.fromarray(astronaut).resize((64, 64))
    second = Image.new("RGB", (64, 64), "red")
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        data = encode(first, kind, save_all=True, append_images=[second])
        clean = Photo(data).published()
        with Image.open(io.BytesIO(clean.data)) as image:
            assert getattr(image, "n_frames", 1) == 1, kind
        assert np.array_equal(clean.pixels, Photo(data).pixels), kind


def test_every_hiding_place_of_a_jpeg(photo_of_641, encode):
    plain = encode(photo_of_641, exif=private_exif(), xmp=b"adobe.com/xap " + SECRET, comment=SECRET)
    extra = b""
    for marker, head in ((0xED, b"Photoshop 3.0\0"), (0xE5, b"maker"), (0xE0, b"JFXX\0"), (0xEF, b"")):
        body = head + SECRET
        extra += bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
    data = plain[:2] + extra + plain[2:] + b"ftypmp42" + SECRET
    photo = Photo(data)
    assert set(photo.metadata) >= {
        "comment", "date", "exif", "gps", "iptc", "owner name", "serial number", "thumbnail",
        "trailing data", "unknown segment", "xmp",
    }  # fmt: skip
    clean = photo.published()
    assert SECRET not in clean.data
    assert clean.metadata == []
    assert np.array_equal(clean.pixels, photo.pixels)


def test_every_hiding_place_of_a_png_and_a_webp(photo_of_641, encode):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    info.add(b"prVt", SECRET)
    png = Photo(encode(photo_of_641, "PNG", pnginfo=info, exif=private_exif()) + SECRET)
    assert {"text chunk", "xmp", "unknown segment", "gps", "trailing data"} <= set(png.metadata)
    webp = Photo(encode(photo_of_641, "WEBP", exif=private_exif(), xmp=SECRET) + SECRET)
    assert {"exif", "xmp", "trailing data"} <= set(webp.metadata)
    for photo in (png, webp):
        clean = photo.published()
        assert SECRET not in clean.data
        assert clean.metadata == []
        assert np.array_equal(clean.pixels, photo.pixels)


def test_a_colour_profile_keeps_its_tables_and_loses_its_texts(photo_of_641, encode):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name = profile.find("sRGB".encode("utf-16-be"))
    assert name > 0
    profile = profile.replace("sRGB".encode("utf-16-be"), "SECR".encode("utf-16-be"))
    clean = image_metadata.clean_icc(profile)
    assert "SECR".encode("utf-16-be") not in clean
    assert image_metadata.icc_is_clean(clean)
    to_lab = [
        ImageCms.applyTransform(
            photo_of_641,
            ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(icc)), _lab(), "RGB", "LAB"),
        )
        for icc in (profile, clean)
    ]
    assert np.array_equal(*map(np.asarray, to_lab)), "the colours are the same"
    for kind in ("JPEG", "WEBP"):
        photo = Photo(encode(photo_of_641, kind, icc_profile=profile))
        assert photo.metadata == ["icc text"]
        assert photo.published().image.info["icc_profile"] == clean
        assert photo.published().metadata == []


def _lab():
    from PIL import ImageCms

    return ImageCms.createProfile("LAB")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no image"),
        ({"bytes": None, "path": None}, "no image"),
        (b"", "empty"),
        (b"this is text", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("/nowhere/maria.jpg", "can't be opened"),
        (3.5, "not an image"),
    ],
)
def test_unreadable_values_give_a_reason_without_content(value, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        Photo.of(value).image
    assert "maria" not in str(caught.value)


def test_pipes_folders_and_huge_images_are_refused(tmp_path, encode):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.jpg", "folder.png"):
        with pytest.raises(UnreadableImage):
            Photo.of(str(tmp_path / name))
    header = encode(Image.new("1", (50_000, 50_000)), "PNG")
    with pytest.raises(UnreadableImage, match="pixels"):
        Photo.of(header)
    with pytest.raises(UnreadableImage, match="more than 100 pixels"):
        Photo.of(encode(Image.new("RGB", (11, 10)), "PNG"), max_pixels=100)


def test_a_file_cut_anywhere_is_unreadable_or_whole(photo_of_641, encode):
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(photo_of_641, kind)
        for end in range(1, len(data) - 16, len(data) // 23):
            with pytest.raises(UnreadableImage):
                Photo.of(data[:end]).image


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_flipped_bytes_never_crash_and_never_leave_with_metadata(kind, data):
    image = Image.linear_gradient("L").convert("RGB").resize((48, 40))
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=private_exif(6))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        photo = Photo.of(bytes(content), max_pixels=10_000_000)
        photo.pixels  # as Inspect does
        clean = photo.published()
    except UnreadableImage:
        return
    assert clean.metadata == []
    assert np.array_equal(clean.pixels, photo.pixels)


def test_the_seed_depends_on_pixels_and_run_and_nothing_else(photo_of_641, encode):
    png, bmp = Photo(encode(photo_of_641, "PNG")), Photo(encode(photo_of_641, "BMP"))
    assert png.seed(1) == bmp.seed(1) == Photo.of(photo_of_641).seed(1)
    assert png.seed(1) != png.seed(2)
    assert 0 <= png.seed(1) < 2**63
    assert png.seed(1) != Photo(encode(photo_of_641.rotate(180), "PNG")).seed(1)


def test_a_pillow_image_out_of_a_photo_is_stored_with_its_own_bytes(photo_of_641, encode):
    import datasets

    data = encode(photo_of_641, quality=71)
    image = Photo(data).as_pillow()
    assert datasets.Image().encode_example(image) == {"path": None, "bytes": data}
    other = io.BytesIO()
    image.save(other, "PNG")
    assert other.getvalue()[:4] == b"\x89PNG"
