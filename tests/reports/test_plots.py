import re

import numpy as np

from spirl_ray.reports.plots import Panel, Series, draw, mean_curve


def test_mean_curve_interpolates_and_stops_where_the_shortest_run_stops():
    long = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    short = (np.array([0.0, 15.0]), np.array([0.0, 30.0]))
    x, mean = mean_curve([long, short])
    assert x.tolist() == [0, 10, 15]
    assert mean.tolist() == [0, 15, 22.5]


def test_mean_curve_leaves_out_what_was_not_recorded():
    x, mean = mean_curve([(np.array([1.0, 2.0, 3.0]), np.array([1.0, np.nan, 3.0]))])
    assert x.tolist() == [1, 3]
    assert mean.tolist() == [1, 3]


def test_many_rows_of_one_step_leave_the_other_steps_as_they_are():
    steps = np.concatenate([np.full(5000, 10.0), np.arange(20.0, 40.0)])
    values = np.concatenate([np.arange(5000.0), np.arange(20.0)])
    x, mean = mean_curve([(steps, values)])
    assert x.tolist() == [10, *range(20, 40)]
    assert mean.tolist() == [4999, *range(20)]


def test_drawing_takes_its_colours_from_the_page_and_is_the_same_each_time():
    runs = [(np.arange(5.0), np.arange(5.0) + seed) for seed in range(3)]
    panel = Panel("Title", [Series("a", runs, colour=1, band=True)], "x")
    svg = draw(panel)
    assert "var(--series-1)" in svg
    assert "currentColor" in svg
    assert "#0" not in re.sub(r"url\(#\w+\)|href=\"#\w+\"", "", svg)
    assert svg == draw(panel)
