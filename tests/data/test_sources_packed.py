"""Captures in archives, behind URLs and in films; and archives that mean harm."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mum_model.data.scenes import SceneIndex
from mum_model.data.sources import archives
from mum_model.errors import UserError
from tests.data.made import open_captures, plain, refusals, write_image
from tests.data.test_prepare import prepared, rooms_of_photos, state


def png(number=0):
    return cv2.imencode(".png", np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8))[
        1
    ].tobytes()


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


PHOTOS = {f"shed/{i}.png": png(i) for i in range(3)}


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.zip", zipped), ("a.tar.gz", tarred), ("a.tar", lambda p, m: tarred(p, m, "w")), ("a.TXZ", tarred)],
)
def test_archive_of_a_capture(tmp_path, name, pack):
    pack(tmp_path / name, PHOTOS)
    captures, refused = open_captures(tmp_path / name)
    assert refused == []
    assert [(c.scene, c.frames) for c in captures] == [("shed", ("0.png", "1.png", "2.png"))]
    assert captures[0].load("1.png").image.shape == (40, 60, 3)


def test_archives_beside_folders_are_scenes_named_like_them(tmp_path):
    zipped(tmp_path / "b.zip", {"0.png": png()})
    tarred(tmp_path / "c.tgz", {"0.png": png()})
    write_image(tmp_path / "a" / "0.png", plain())
    assert [capture.scene for capture in open_captures(tmp_path)[0]] == ["a", "b", "c"]


def test_archive_gives_the_dataset_that_its_folder_gives(tmp_path):
    source = rooms_of_photos(tmp_path)
    with zipfile.ZipFile(tmp_path / "captures.zip", "w") as archive:
        for path in sorted((tmp_path / "captures").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "captures"))
    folder = prepared(tmp_path / "folder", source)
    packed = prepared(tmp_path / "packed", f"data.source={tmp_path / 'captures.zip'}")
    assert state(folder) == state(packed)
    again = prepared(tmp_path / "packed", f"data.source={tmp_path / 'captures.zip'}")
    assert state(again) == state(packed)


def harmful_zip(kind):
    def write(path):
        info = zipfile.ZipInfo({"parent": "../out.png", "absolute": "/tmp/out.png", "link": "a/link"}[kind])
        if kind == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, b"/etc/passwd" if kind == "link" else png())

    return write


def harmful_tar(kind):
    def write(path):
        info = tarfile.TarInfo({"parent": "a/../../out.png", "absolute": "/tmp/out.png"}.get(kind, "a/odd"))
        types = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        info.type = types.get(kind, tarfile.REGTYPE)
        info.linkname = "/etc/passwd"
        with tarfile.open(path, "w") as archive:
            archive.addfile(info)

    return write


def cut(pack):
    def write(path):
        pack(path, {f"{i}.png": png(i) for i in range(20)})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def twice(path):
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            archive.addfile(info)


def encrypted(path):
    zipped(path, {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag, in the local header
    data[data.index(b"PK\1\2") + 8] |= 1  # and in the directory
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("x.zip", harmful_zip("parent"), "leads out of the capture"),
        ("x.zip", harmful_zip("absolute"), "leads out of the capture"),
        ("x.zip", harmful_zip("link"), "is a link or device"),
        ("x.tar", harmful_tar("parent"), "leads out of the capture"),
        ("x.tar", harmful_tar("absolute"), "leads out of the capture"),
        ("x.tar", harmful_tar("link"), "is a link or device"),
        ("x.tar", harmful_tar("hard"), "is a link or device"),
        ("x.tar", harmful_tar("device"), "is a link or device"),
        ("x.tar", twice, "is in it twice"),
        ("x.zip", cut(zipped), "cut or damaged archive"),
        ("x.tar.gz", cut(tarred), "cut or damaged archive"),
        ("x.zip", encrypted, "expected an archive without a password"),
        ("x.zip", lambda path: path.write_bytes(b""), "cut or damaged archive"),
        ("x.tar", lambda path: path.write_text("<html>404</html>"), "cut or damaged archive"),
        ("x.tar.xz", lambda path: path.write_bytes(png()), "cut or damaged archive"),
    ],
)
def test_bad_archive_is_refused_and_its_neighbours_stay(tmp_path, name, write, reason):
    write(tmp_path / name)
    write_image(tmp_path / "good" / "0.png", plain())
    assert [capture.scene for capture in open_captures(tmp_path)[0]] == ["good"]
    assert f"{tmp_path / name}: " in refusals(tmp_path)
    assert reason in refusals(tmp_path)
    assert not Path("/tmp/out.png").exists()
    assert not list(tmp_path.rglob("out.png"))


@pytest.mark.parametrize(("name", "pack"), [("bomb.zip", zipped), ("bomb.tar.gz", tarred)])
def test_bomb_stops_when_it_has_outgrown_its_archive(tmp_path, monkeypatch, name, pack):
    monkeypatch.setattr(archives, "ROOM", 2**20)
    pack(tmp_path / name, {"a.png": bytes(64 * 2**20)})
    write_image(tmp_path / "good" / "0.png", plain())
    assert [capture.scene for capture in open_captures(tmp_path)[0]] == ["good"]
    assert "an archive bomb" in refusals(tmp_path)
    left = [path for path in (tmp_path.parent / f".work-of-{tmp_path.name}").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left) == 0


# S3


def upload(client, folder, prefix):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "lab", f"{prefix}/{path.relative_to(folder).as_posix()}")


def test_captures_on_s3_give_the_dataset_that_local_ones_give(tmp_path, s3):
    source = rooms_of_photos(tmp_path)
    (tmp_path / "captures" / "a" / "broken.jpg").write_bytes(b"")
    upload(s3, tmp_path / "captures", "2026/captures")
    local = prepared(tmp_path / "local", source)
    remote = prepared(tmp_path / "remote", "data.source=s3://lab/2026/captures")
    assert state(remote) == state(local)


def test_only_what_changed_on_s3_is_fetched_and_done(tmp_path, s3):
    rooms_of_photos(tmp_path)
    upload(s3, tmp_path / "captures", "grows")
    first = prepared(tmp_path, "data.source=s3://lab/grows")
    fetched = {path: path.stat().st_ino for path in (tmp_path / ".dataset.sources").rglob("*.png")}
    count = len(SceneIndex.open(first))
    rooms_of_photos(tmp_path / "more", "x")
    upload(s3, tmp_path / "more" / "captures", "grows")
    second = prepared(tmp_path, "data.source=s3://lab/grows")
    assert len(SceneIndex.open(second)) == count + 4
    assert {path: path.stat().st_ino for path in fetched} == fetched
    for i in range(4):
        s3.delete_object(Bucket="lab", Key=f"grows/a/{i}.png")
    third = SceneIndex.open(prepared(tmp_path, "data.source=s3://lab/grows"))
    assert set(third.column("scene")) == {"b", "c", "d", "x"}


def test_url_that_cannot_be_read_is_named_without_secrets(tmp_path, s3):
    for url in ("s3://lab/nothing-here", "s3://no-such-bucket/x", "carrier-pigeon://a/b"):
        with pytest.raises(UserError) as caught:
            prepared(tmp_path, f"data.source={url}")
        assert f"{url}: " in str(caught.value)
        assert "secret" not in str(caught.value)


# Films


def film(path, positions, blurred=(), size=(240, 320), codec="libx264"):
    """A window of a large picture at each of these x positions, 10 frames a second."""
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(0, 255, (60, 400, 3), dtype=np.uint8), (3200, 480), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i, x in enumerate(positions):
            picture = wall[: size[0], int(x) : int(x) + size[1]]
            picture = cv2.GaussianBlur(picture, (0, 0), 6) if i in blurred else picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return wall


def test_keyframes_follow_the_motion_and_not_the_clock(tmp_path):
    """It stands for two seconds, moves by 5 pixels a frame for two, stands again."""
    film(tmp_path / "walk.mp4", [0] * 20 + list(range(0, 100, 5)) + [95] * 20)
    (capture,), refused = open_captures(tmp_path / "walk.mp4")
    assert refused == []
    assert (capture.scene, capture.source) == ("walk", "video")
    times = [float(name) for name in capture.frames]
    assert times[0] == 0
    assert all(1.9 < time < 4.2 for time in times[1:])
    assert 4 <= len(times) <= 9  # 95 pixels of 320, a keyframe at 4 to 8 hundredths of the width


def test_the_sharpest_of_a_stretch_is_taken(tmp_path):
    positions = list(range(0, 200, 4))
    film(tmp_path / "pan.mp4", positions, blurred=set(range(50)) - set(range(0, 50, 5)))
    (capture,), _ = open_captures(tmp_path / "pan.mp4")
    indices = [round(10 * float(name)) for name in capture.frames]
    assert len(indices) > 4
    assert all(index % 5 == 0 for index in indices[:-1])


def test_frames_of_a_film_are_read_in_any_order(tmp_path):
    positions = list(range(0, 300, 6))
    wall = film(tmp_path / "pan.mkv", positions)
    (capture,), _ = open_captures(tmp_path)
    for name in (capture.frames[-1], capture.frames[1], capture.frames[3], capture.frames[1]):
        x = positions[round(10 * float(name))]
        difference = np.abs(capture.load(name).image.astype(float) - wall[:240, x : x + 320]).mean()
        assert difference < 12


def test_film_that_breaks_off_keeps_what_comes_before(tmp_path):
    film(tmp_path / "cut.mkv", list(range(0, 800, 8)))
    whole = len(open_captures(tmp_path)[0][0].frames)
    data = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    (capture,), _ = open_captures(tmp_path)
    assert 1 < len(capture.frames) < whole
    assert capture.load(capture.frames[-1]).image.shape == (240, 320, 3)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", png()])
def test_what_is_no_film_is_refused(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    write_image(tmp_path / "good" / "0.png", plain())
    captures, _ = open_captures(tmp_path)
    assert "good" in [capture.scene for capture in captures]
    if len(captures) == 1:
        assert f"{tmp_path / 'film.mp4'}: cannot be opened as a film" in refusals(tmp_path)
    else:  # FFmpeg reads a picture as a film of one frame
        assert captures[0].load(captures[0].frames[0]).image.shape == (40, 60, 3)
