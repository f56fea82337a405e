"""The report of a whole experiment, which several files look at."""

import pytest
from reports.made_reports import report, video_file, whole_experiment


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files and page of the report of a whole experiment with one video."""
    folder = tmp_path_factory.mktemp("experiment")
    record = whole_experiment(folder)
    record.trials[0].videos.append(video_file(folder / "episode.mp4"))
    return report(folder / "report", record)
