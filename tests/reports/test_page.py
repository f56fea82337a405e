"""The page of a report: nothing of it comes from elsewhere, and its videos play."""

import base64
import re
from dataclasses import replace

import imageio_ffmpeg
from reports.made_reports import (
    experiment,
    prior,
    report,
    trial,
    video_file,
)

from spirl_ray.envs.metrics import subtask_scores
from spirl_ray.reports.records import SkillRecord


def test_names_are_escaped(tmp_path):
    hostile = '<script>alert("x")</script> & $x_1$'
    record = experiment(
        name=hostile,
        environment=hostile,
        scores=subtask_scores([hostile]),
        config_yaml=hostile,
        commands=[hostile],
        versions={hostile: hostile},
        data_card={hostile: {hostile: hostile}},
        trials=[trial(tmp_path, method=hostile)],
        priors=[replace(prior(tmp_path), skill_label=hostile, augmentation=hostile)],
        skills=[SkillRecord(hostile, None, {hostile: hostile})],
    )
    files, page = report(tmp_path / "report", record)
    assert "<script" not in files.html.read_text()
    assert hostile in page.text


def test_page_asks_the_network_for_nothing(whole):
    files, page = whole
    html = files.html.read_text()
    assert "http" not in html
    assert "//" not in re.sub(r"base64,[^\"]*", "", html)
    addresses = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert all("#" in url for url in re.findall(r"url\([^)]*\)", html))


def test_references_inside_drawings_lead_somewhere(whole):
    _, page = whole
    ids = {value for _, name, value in page.attributes if name == "id"}
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    clips = [value for _, name, value in page.attributes if name == "clip-path"]
    assert clips
    assert {re.fullmatch(r"url\(#(.*)\)", clip)[1] for clip in clips} <= ids  # type: ignore[index]


def test_embedded_video_is_the_file_and_decodes(tmp_path):
    path = video_file(tmp_path / "episode.mp4")
    _, page = report(tmp_path / "report", experiment(trials=[trial(tmp_path, videos=[path])]))
    (source,) = page.values("video", "src")
    data = base64.b64decode(source.removeprefix("data:video/mp4;base64,"))
    assert data == path.read_bytes()
    (tmp_path / "again.mp4").write_bytes(data)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "again.mp4"))[0] == 5
    assert "spirl · seed 0 · episode" in page.text


def test_videos_of_the_data_stand_after_those_of_the_agents(tmp_path):
    videos = [video_file(tmp_path / f"{name}.mp4") for name in ("episode", "demonstrations")]
    record = experiment(trials=[trial(tmp_path, videos=videos[:1])], demonstrations=videos[1:])
    _, page = report(tmp_path / "report", record)
    assert len(page.values("video", "src")) == 2
    assert page.text.index("spirl · seed 0 · episode") < page.text.index("demonstrations")


def test_videos_beyond_the_limit_are_linked_by_relative_path(tmp_path):
    first, second = (video_file(tmp_path / "run 1" / f"{name}.mp4") for name in ("first", "second"))
    record = experiment(trials=[trial(tmp_path, videos=[first, second])])
    one_fits = round(1.5 * 4 / 3 * first.stat().st_size)
    _, page = report(tmp_path / "report", record, video_limit_bytes=one_fits)
    embedded, linked = page.values("video", "src")
    assert embedded.startswith("data:video/mp4;base64,")
    assert linked == "../run%201/second.mp4"
    assert linked in page.values("a", "href")


def test_video_that_is_gone_is_said(tmp_path):
    record = experiment(trials=[trial(tmp_path, videos=[tmp_path / "gone.mp4"])])
    _, page = report(tmp_path / "report", record)
    assert "This video is not there." in page.text
    assert page.values("video", "src") == []
