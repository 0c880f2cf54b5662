"""Bad input through `prepare`'s own door: each case ends in one line that names file and reason, beside good scenes.

Cases of one format's own files are in the tests of its source; here are those that any format can meet.
"""

import json
import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from mum_model.data.captures import printable
from mum_model.data.scenes import SceneIndex
from tests.data.made import plain, write_image, write_png16
from tests.data.test_prepare import prepared

SIZE = 48, 64


def encoded(ending, image, *options):
    done, content = cv2.imencode(ending, image, list(options))
    assert done
    return content.tobytes()


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def jpeg():
    return encoded(".jpg", noise(*SIZE, 3))


def png():
    return encoded(".png", noise(*SIZE, 3))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width, height, depth=8, colour=2, data=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg_claiming(width, height):
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def flipped(data, at):
    damaged = bytearray(data)
    damaged[at] ^= 0xFF
    return bytes(damaged)


REFUSED = {
    "empty": (b"", "empty file"),
    "one byte": (b"\xff", "not an image"),
    "zeros": (bytes(4096), "not an image"),
    "text": (b"not an image", "not an image"),
    "html": (b"<!doctype html><title>404</title>", "not an image"),
    "json": (b"{}", "not an image"),
    "pickle": (b"\x80\x04K\x01.", "not an image"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an image"),
    "gif": (b"GIF89a" + bytes(100), "not an image"),
    "bmp": (encoded(".bmp", noise(*SIZE, 3)), "not an image"),
    "tiff": (encoded(".tiff", noise(*SIZE, 3)), "not an image"),
    "webp": (encoded(".webp", noise(*SIZE, 3)), "not an image"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not an image"),
    "PNG signature alone": (png()[:8], "cut"),
    "JPEG signature alone": (jpeg()[:3], "cut"),
    "JPEG without end": (jpeg()[:-2], "cut"),
    "JPEG of header alone": (jpeg()[: jpeg().index(b"\xff\xda")], "cut"),
    "JPEG that claims 200 megapixels": (jpeg_claiming(20_000, 10_000), "at most 100 megapixels"),
    "JPEG too wide": (jpeg_claiming(60_000, 10), "at most 100 megapixels and 32766 a side"),
    "JPEG of no size": (jpeg_claiming(0, 0), ""),
    "PNG that claims 200 megapixels": (png_of(20_000, 10_000), "at most 100 megapixels"),
    "PNG that claims 4 gigapixels": (png_of(2**31 - 1, 2**31 - 1), "at most 100 megapixels"),
    "PNG of no size": (png_of(0, 0), ""),
    "PNG without pixels": (png_of(64, 48), ""),
    "PNG with half its pixels": (png_of(64, 48, data=bytes(64 * 48)), ""),
    "PNG of an unknown depth": (png_of(64, 48, depth=7, data=bytes(9000)), ""),
    "PNG with a wrong checksum": (flipped(png(), 20), "wrong checksum"),
    "PNG with damaged pixels": (flipped(png(), len(png()) // 2), "wrong checksum"),
} | {
    f"{name} cut at {share:.0%}": (data()[: int(share * len(data()))], "")
    for name, data in (("JPEG", jpeg), ("PNG", png))
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
}
"""Content of an image file that cannot be used, and what the reason must say."""

KEPT = {
    "grey JPEG": encoded(".jpg", noise(*SIZE)),
    "grey PNG": encoded(".png", noise(*SIZE)),
    "16-bit PNG": encoded(".png", noise(*SIZE, 3, dtype=np.uint16)),
    "grey 16-bit PNG": encoded(".png", noise(*SIZE, dtype=np.uint16)),
    "PNG with alpha": encoded(".png", noise(*SIZE, 4)),
    "one-bit PNG": encoded(".png", noise(*SIZE) // 255 * 255, cv2.IMWRITE_PNG_BILEVEL, 1),
    "one pixel": encoded(".png", noise(1, 1, 3)),
    "one row": encoded(".png", noise(1, 200, 3)),
    "one column": encoded(".jpg", noise(200, 1, 3)),
    "progressive JPEG": encoded(".jpg", noise(*SIZE, 3), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart markers": encoded(".jpg", noise(*SIZE, 3), cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "worst quality": encoded(".jpg", noise(*SIZE, 3), cv2.IMWRITE_JPEG_QUALITY, 1),
    "bytes after the end": jpeg() + b"motion photo" * 100,
    "padding before a marker": jpeg()[:2] + b"\xff\xff\xff" + jpeg()[2:],
}
"""Content that is odd and good."""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """One dataset of all bad and odd files, a scene each, beside good ones."""
    root = tmp_path_factory.mktemp("many")
    for number, (content, _) in enumerate(REFUSED.values()):
        write_image(root / "captures" / f"refused{number}" / "good.png", plain(*SIZE))
        (root / "captures" / f"refused{number}" / "bad.jpg").write_bytes(content)
    for number, content in enumerate(KEPT.values()):
        write_image(root / "captures" / f"kept{number}" / "good.png", plain(*SIZE))
        (root / "captures" / f"kept{number}" / "odd.png").write_bytes(content)
    return SceneIndex.open(prepared(root, f"data.source={root / 'captures'}", "data.max_refused_share=0.6"))


@pytest.mark.parametrize("case", REFUSED)
def test_bad_image_is_named_and_its_neighbour_stays(many, case):
    number, reason = list(REFUSED).index(case), REFUSED[case][1]
    (said,) = (r["reason"] for r in many.card["refused"] if r["path"] == f"captures/refused{number}/bad.jpg")
    assert reason in said
    assert said
    assert "\n" not in said
    frames = many.column("frame")[many.column("scene") == f"refused{number}"]
    assert frames.tolist() == ["good.png"]


@pytest.mark.parametrize("case", KEPT)
def test_odd_image_is_kept(many, case):
    scene = f"kept{list(KEPT).index(case)}"
    rows = np.flatnonzero(many.column("scene") == scene)
    assert many.column("frame")[rows].tolist() == ["good.png", "odd.png"]
    image = many.image(int(rows[1]))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


NAMES = [
    "with space", "tab\there", "new\nline", "quote'\"", "per%cent", "ünïcödé", "日本語", "🏠", "-dash", "a" * 120,
    "$(touch x)", ";rm", "back\\slash", "{brace}", "[bracket]", "star*", "question?", "trailing.", "UPPER", "upper",
    "#", "\x7f", "a,b", "a=b", "a|b", "<a>", "&amp;", "~", "\u202ertl", "e\u0301", "\u00e9",
]  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """One dataset of scenes and files with every odd name."""
    root = tmp_path_factory.mktemp("named")
    for name in NAMES:
        write_image(root / "plain.png", noise(*SIZE, 3))
        folder = root / "captures" / name
        folder.mkdir(parents=True)
        for file in ("0.png", f"{name}.png"):
            (folder / file).write_bytes((root / "plain.png").read_bytes())
        (folder / f"{name} broken.png").write_bytes(b"")
    dataset = prepared(root, f"data.source={root / 'captures'}", "data.max_refused_share=0.6")
    return SceneIndex.open(dataset)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_through(named, name):
    rows = np.flatnonzero(named.column("scene") == name)
    assert set(named.column("frame")[rows]) == {"0.png", f"{name}.png"}
    for row in rows.tolist():
        assert named.image(row).shape == (*SIZE, 3)
    refused = {refusal["path"] for refusal in named.card["refused"]}
    assert printable(f"captures/{name}/{name} broken.png") in refused


def test_names_that_differ_in_what_is_replaced_keep_shards_of_their_own(named):
    shards = set(named.column("shard"))
    assert len(shards) == len(NAMES)
    assert all(shard.isascii() and "/" not in shard for shard in shards)


def rgbd(folder, pose=None, depth=None, K=None, frames=3):
    for number in range(frames):
        stem = folder / f"frame-{number:06d}"
        write_image(stem.with_name(f"{stem.name}.color.png"), noise(*SIZE, 3))
        write_png16(stem.with_name(f"{stem.name}.depth.png"), np.full(SIZE, 1500) if depth is None else depth)
        np.savetxt(stem.with_name(f"{stem.name}.pose.txt"), np.eye(4) if pose is None else pose)
    np.savetxt(folder / "camera-intrinsics.txt", np.diag([60.0, 60, 1]) if K is None else K)


def turned(scale=1.0, **entries):
    pose = np.eye(4)
    pose[:3, :3] *= scale
    for where, value in entries.items():
        pose[int(where[1]), int(where[2])] = value
    return pose


POSES = {
    "not a number": turned(_00=np.nan),
    "infinite": turned(_03=np.inf),
    "minus infinity": turned(_13=-np.inf),
    "zeros": np.zeros((4, 4)),
    "scaled up": turned(scale=1.2),
    "scaled down": turned(scale=0.5),
    "mirrored": turned(_22=-1),
    "sheared": turned(_01=0.3),
    "3x4": np.eye(4)[:3],
    "3x3": np.eye(3),
    "5x5": np.eye(5),
    "a line": np.eye(4).reshape(1, 16),
    "a number": np.ones((1, 1)),
    "projective": turned(_30=0.1),
    "last row scaled": turned(_33=2),
}
CAMERAS = {
    "zero focal length": np.diag([0.0, 60, 1]),
    "negative focal length": np.diag([60.0, -60, 1]),
    "not a number": np.full((3, 3), np.nan),
    "infinite": np.diag([np.inf, 60, 1]),
    "4x4": np.eye(4),
    "2x3": np.eye(3)[:2],
    "homogeneous row": np.diag([60.0, 60, 2]),
    "not upper triangular": np.ones((3, 3)),
}


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    """One dataset of RGB-D scenes with every broken pose and camera, beside a good one."""
    root = tmp_path_factory.mktemp("posed")
    rgbd_root = root / "captures"
    for number, pose in enumerate(POSES.values()):
        (rgbd_root / f"pose{number}").mkdir(parents=True)
        rgbd(rgbd_root / f"pose{number}")
        np.savetxt(rgbd_root / f"pose{number}" / "frame-000001.pose.txt", pose)
    for number, K in enumerate(CAMERAS.values()):
        (rgbd_root / f"camera{number}").mkdir(parents=True)
        rgbd(rgbd_root / f"camera{number}", K=K)
    return SceneIndex.open(prepared(root, f"data.source={rgbd_root}", "data.max_refused_share=0.6"))


@pytest.mark.parametrize("case", POSES)
def test_broken_pose_is_named_and_the_frames_beside_it_stay(posed, case):
    scene = f"pose{list(POSES).index(case)}"
    (said,) = (r for r in posed.card["refused"] if r["path"] == f"captures/{scene}/frame-000001.pose.txt")
    assert "expected" in said["reason"]
    assert posed.column("frame")[posed.column("scene") == scene].tolist() == ["frame-000000", "frame-000002"]


@pytest.mark.parametrize("case", CAMERAS)
def test_broken_camera_refuses_its_scene_alone(posed, case):
    scene = f"camera{list(CAMERAS).index(case)}"
    (said,) = (r for r in posed.card["refused"] if r["path"] == f"captures/{scene}/camera-intrinsics.txt")
    assert "expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]" in said["reason"]
    assert scene not in posed.column("scene")


DEPTHS = {
    "no pixel known": np.zeros(SIZE),
    "all at the unknown value": np.full(SIZE, 65535),
    "one pixel known": np.where(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == 5, 1000, 0),
    "holes": np.where(noise(*SIZE) > 128, 1500, 0),
    "farthest": np.full(SIZE, 65534),
    "a millimetre": np.ones(SIZE),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_depth_with_holes_is_kept_as_it_is(tmp_path, case):
    (tmp_path / "scene").mkdir()
    rgbd(tmp_path / "scene", depth=DEPTHS[case])
    index = SceneIndex.open(prepared(tmp_path, f"data.source={tmp_path / 'scene'}"))
    expected = np.where(DEPTHS[case] == 65535, 0, DEPTHS[case]) / 1000
    np.testing.assert_allclose(index.camera(0).depth, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: encoded(".png", noise(*SIZE)), "16-bit grey PNG"),
        (lambda: encoded(".png", noise(*SIZE, 3, dtype=np.uint16)), "16-bit grey PNG"),
        (lambda: encoded(".png", noise(*SIZE, 4)), "16-bit grey PNG"),
        (jpeg, "16-bit grey PNG"),
        (lambda: b"", "empty file"),
        (lambda: encoded(".png", noise(*SIZE, dtype=np.uint16))[:200], "cut"),
        (lambda: encoded(".png", noise(10, 10, dtype=np.uint16)), "expected the colour image's"),
    ],
)
def test_bad_depth_file_is_named(tmp_path, content, reason):
    (tmp_path / "scene").mkdir()
    rgbd(tmp_path / "scene", frames=6)
    (tmp_path / "scene" / "frame-000001.depth.png").write_bytes(content())
    index = SceneIndex.open(prepared(tmp_path, f"data.source={tmp_path / 'scene'}"))
    (refused,) = index.card["refused"]
    assert refused["path"] == "scene/frame-000001.depth.png"
    assert reason in refused["reason"]
    assert len(index) == 5


# The file system


def good(root, *names):
    for name in names or ("a", "b"):
        write_image(root / "captures" / name / "0.png", noise(*SIZE, 3))
    return f"data.source={root / 'captures'}"


def test_links_in_a_circle_end(tmp_path):
    source = good(tmp_path)
    (tmp_path / "captures" / "a" / "loop").symlink_to(tmp_path / "captures")
    (tmp_path / "captures" / "self").symlink_to("self")
    (tmp_path / "captures" / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "captures" / "a" / "nowhere.png").symlink_to("nothing.png")
    index = SceneIndex.open(prepared(tmp_path, source))
    assert index.column("frame").tolist() == ["0.png", "0.png"]


def test_things_that_are_no_files_are_passed_over(tmp_path):
    source = good(tmp_path)
    os.mkfifo(tmp_path / "captures" / "a" / "pipe.png")
    (tmp_path / "captures" / "a" / "folder.png").mkdir()
    assert len(SceneIndex.open(prepared(tmp_path, source))) == 2


def test_linked_folders_are_scenes(tmp_path):
    good(tmp_path / "elsewhere")
    (tmp_path / "captures").mkdir()
    (tmp_path / "captures" / "linked").symlink_to(tmp_path / "elsewhere" / "captures" / "a")
    index = SceneIndex.open(prepared(tmp_path, f"data.source={tmp_path / 'captures'}"))
    assert len(index) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read_is_named(tmp_path):
    source = good(tmp_path)
    (tmp_path / "captures" / "a").chmod(0)
    index = SceneIndex.open(prepared(tmp_path, source))
    assert index.card["refused"][0]["path"] == "captures/a"


def test_the_same_scene_twice_is_kept_once(tmp_path):
    good(tmp_path)
    twice = f"data.source=[{tmp_path / 'captures'}, {tmp_path / 'captures'}]"
    index = SceneIndex.open(prepared(tmp_path, twice, "data.max_refused_share=0.6"))
    assert len(index) == 2
    assert [refusal["reason"] for refusal in index.card["refused"]] == [
        "a second images scene named 'a'; the first is kept",
        "a second images scene named 'b'; the first is kept",
    ]


def test_names_that_are_no_text_are_refused_and_their_neighbours_stay(tmp_path, caplog):
    source = good(tmp_path, "a", "b", "c")
    photo = (tmp_path / "captures" / "a" / "0.png").read_bytes()
    for name in (b"\xff\xfe/0.png", b"a/\xe9.png"):
        path = tmp_path / "captures" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo)
    index = SceneIndex.open(prepared(tmp_path, source, "data.max_refused_share=0.5"))
    assert len(index) == 3
    said = {refusal["path"]: refusal["reason"] for refusal in index.card["refused"]}
    assert said == {
        "captures/\\udcff\\udcfe": "the name is not UTF-8; rename the folder",
        "a/\\udce9.png": "the name is not UTF-8; rename the file",
    }
    assert "left out: a/\\udce9.png" in caplog.text


def test_every_refusal_is_one_line_of_the_log(tmp_path, caplog):
    source = good(tmp_path)
    (tmp_path / "captures" / "a" / "two\nlines.jpg").write_bytes(b"")
    prepared(tmp_path, source, "data.max_refused_share=0.5")
    (message,) = (record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    assert "two\\nlines.jpg: empty file" in message
    assert "\n" not in message


def test_model_whose_photos_are_gone_is_refused_beside_good_scenes(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    source = good(tmp_path)
    model = tmp_path / "captures" / "model" / "sparse" / "0"
    model.mkdir(parents=True)
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model="PINHOLE", width=64, height=48, params=[60, 60, 32, 24])
    reconstruction.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(image_id=1, camera_id=1, name="gone.jpg")
    reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.eye(4)[:3]))
    reconstruction.write_binary(str(model))
    (tmp_path / "captures" / "model" / "images").mkdir()
    index = SceneIndex.open(prepared(tmp_path, source, "data.max_refused_share=0.9"))
    assert len(index) == 2
    assert "captures/model/images/gone.jpg" in {refusal["path"] for refusal in index.card["refused"]}


def test_the_card_is_valid_json_whatever_was_refused(many, named, posed):
    for index in (many, named, posed):
        json.loads((index.directory / "dataset.json").read_text())
        assert "<script" not in (index.directory / "card.html").read_text()
