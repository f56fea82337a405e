"""Episodes of a user's function are read as it gives them, and its errors become one message."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from spirl_ray.datasets.formats.python import PythonSettings, make
from spirl_ray.episodes.recording import Recording, RecordingReader
from spirl_ray.errors import SpirlError

BY_INDEX = """
import numpy as np

def episodes(indices, steps=3):
    for index in indices:
        rows = np.arange(steps + 1.0)[:, None] + 10 * index
        yield {
            "observations": {
                "robot": {"joints": rows, "image": np.zeros((steps + 1, 2, 2, 3), np.uint8)},
                "goal": rows,
            },
            "actions": rows[:-1] / 100,
            "rewards": list(range(steps)),
            "terminated": index == 1,
            "id": f"run-{index}",
            "metadata": {"index": index},
        }
"""
ALL = """
import numpy as np
CALLS = []

class Run:
    def __init__(self, number):
        self.observations = np.arange(4.0) + 10 * number
        self.actions = np.zeros((3, 2))
        self.truncated = [False, False, True]

def episodes(count=4):
    CALLS.append(count)
    for number in range(count):
        yield Run(number)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes a module that can be imported until the test ends."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    with monkeypatch.context() as patch:

        def write(name: str, text: str) -> Path:
            patch.delitem(sys.modules, name, raising=False)
            file = folder / f"{name}.py"
            file.write_text(text)
            return file

        yield write


def reader(call: str, **options: Any) -> RecordingReader:
    return make(PythonSettings.model_validate({"type": "python", "call": call, **options}), None)


def read_all(source: RecordingReader, *keys: str) -> list[Recording]:
    return [episode for chunk in source.chunks() for episode in source.read(chunk, keys)]


def test_a_function_is_called_with_indices_where_their_number_is_known(module: Callable[[str, str], Path]) -> None:
    module("tapes_by_index", BY_INDEX)
    source = reader("tapes_by_index:episodes", episodes=3, options={"steps": 2})
    layout = source.layout()
    assert {key: (kind.shape, kind.dtype) for key, kind in layout.observations.items()} == {
        "robot.joints": ((1,), np.float64),
        "robot.image": ((2, 2, 3), np.uint8),
        "goal": ((1,), np.float64),
    }
    assert (layout.actions, layout.rewards) == (((1,), np.float64), True)
    assert source.chunks() == [(0,), (1,), (2,)]
    copy: RecordingReader = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own)
    last, middle = copy.read((2, 1), ["robot.joints"])
    assert (last.id, middle.id) == ("run-2", "run-1")
    assert set(last.observations) == {"robot.joints"}
    np.testing.assert_array_equal(last.observations["robot.joints"], [[20], [21], [22]])
    np.testing.assert_array_equal(last.actions, [[0.2], [0.21]])
    np.testing.assert_array_equal(middle.rewards, [0, 1])
    assert [(one.terminated, one.truncated) for one in (last, middle)] == [(False, True), (True, False)]
    assert last.metadata == {"index": 2}
    assert source.origin() == "python:tapes_by_index:episodes"


def test_without_a_number_all_episodes_are_one_chunk(module: Callable[[str, str], Path]) -> None:
    module("tapes_at_once", ALL)
    source = reader("tapes_at_once:episodes")
    assert {key: kind.shape for key, kind in source.layout().observations.items()} == {"observation": (1,)}
    assert source.chunks() == source.chunks() == [(0, 1, 2, 3)]
    from tapes_at_once import CALLS

    assert len(CALLS) == 2  # for the layout and for the count
    episodes = list(source.read((3, 0, 2), ["observation"]))
    assert [one.observations["observation"][0, 0] for one in episodes] == [30, 0, 20]
    assert [one.id for one in episodes] == ["00003", "00000", "00002"]
    assert {(one.terminated, one.truncated, one.rewards) for one in episodes} == {(False, True, None)}
    assert reader("tapes_at_once:episodes", options={"count": 0}).chunks() == []


def test_an_error_of_the_function_names_its_line(module: Callable[[str, str], Path]) -> None:
    file = module(
        "tapes_that_fail",
        "import json\ndef start(indices):\n    json.loads('{')\ndef later(count):\n    yield from ()\n    1 / 0\n"
        "def early(indices):\n    raise RuntimeError('no such tape')\n",
    )
    where = str(file).replace(".", r"\.")
    with pytest.raises(SpirlError, match=rf"tapes_that_fail:start: raised JSONDecodeError.*{where}, line 3, in start"):
        reader("tapes_that_fail:start", episodes=1).layout()
    with pytest.raises(SpirlError, match=rf"later: raised ZeroDivisionError: .*{where}, line 6, in later: 1 / 0"):
        reader("tapes_that_fail:later", options={"count": 1}).chunks()
    with pytest.raises(SpirlError, match=r"early: raised RuntimeError: no such tape .*line 8"):
        read_all(reader("tapes_that_fail:early", episodes=1))
    with pytest.raises(SpirlError, match=r"early: raised TypeError: .*unexpected keyword argument 'speed'\.$"):
        read_all(reader("tapes_that_fail:early", episodes=1, options={"speed": 1}))


def test_a_function_that_cannot_be_found_is_named(module: Callable[[str, str], Path]) -> None:
    with pytest.raises(SpirlError, match=r"nowhere\.tapes:all: the module nowhere\.tapes cannot be found"):
        reader("nowhere.tapes:all").layout()
    with pytest.raises(SpirlError, match=r"nowhere:all: the module nowhere cannot be found"):
        reader("nowhere:all").identity()
    module("tapes_misspelt", "import nowhere_else\n")
    with pytest.raises(SpirlError, match=r"raised ModuleNotFoundError: No module named 'nowhere_else'.*line 1"):
        reader("tapes_misspelt:all").layout()
    module("tapes_other", "def episodes():\n    return None\nSIZE = 3\n")
    with pytest.raises(SpirlError, match=r"tapes_other\.py: has no 'all'; it has: SIZE, episodes"):
        reader("tapes_other:all").layout()
    with pytest.raises(SpirlError, match=r"tapes_other:SIZE: is int, no function"):
        reader("tapes_other:SIZE").layout()
    with pytest.raises(SpirlError, match=r"tapes_other:episodes: returned NoneType"):
        reader("tapes_other:episodes").layout()
    for call in ("tapes_other", "tapes_other:", ":all", "tapes.py:all x"):
        with pytest.raises(ValidationError, match=r"package\.module:function"):
            reader(call)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        ("{'observations': [[1.0]] * 3}", r"episode 0: has no 'actions'; it has: observations"),
        ("{'observations': [[1.0]] * 3, 'actions': None}", r"episode 0: has no 'actions'"),
        ("{'observation': 1, 'actions': 1}", r"episode 0: has observation; an episode has: observations, actions"),
        ("'tape'", r"episode 0: is str; expected a mapping"),
        ("{'observations': [[1.0], [1.0, 2.0]], 'actions': [[1.0]]}", r"observation: is no array of numbers"),
        ("{'observations': [[None]] * 2, 'actions': [[1.0]]}", r"observation: holds Python objects"),
        ("{'observations': {'a': {'b': ['x', 'y']}}, 'actions': [[1.0]]}", r"a\.b: holds <U1"),
        ("{'observations': [[1.0]] * 4, 'actions': [[1.0]]}", r"00000: observation has 4 rows and actions has 1"),
        ("{'observations': {'a': [1.0] * 3, 'b': [1.0] * 2}, 'actions': [1.0] * 2}", r"b has 2 rows and a has 3"),
        ("{'observations': 1.0, 'actions': [1.0]}", r"observation: is a single value"),
        ("{'observations': [1.0] * 2, 'actions': [1.0], 'metadata': 3}", r"00000: metadata is int"),
    ],
)
def test_a_wrong_episode_is_named(module: Callable[[str, str], Path], episode: str, message: str) -> None:
    module("tapes_wrong", f"def episodes():\n    return [{episode}]\n")
    source = reader("tapes_wrong:episodes")
    with pytest.raises(SpirlError, match=rf"python:tapes_wrong:episodes: episode .*{message}|{message}"):
        list(source.read((0,), []))


def test_a_missing_key_and_a_wrong_number_are_named(module: Callable[[str, str], Path]) -> None:
    module("tapes_by_number", BY_INDEX + "\ndef few(indices):\n    return episodes(indices[1:])\n")
    with pytest.raises(SpirlError, match=r"episode run-0: has no 'eef'; it has: goal, robot\.image, robot\.joints"):
        read_all(reader("tapes_by_number:episodes", episodes=1), "eef")
    with pytest.raises(SpirlError, match=r"few: gave 1 episodes for 2 indices"):
        list(reader("tapes_by_number:few", episodes=2).read((0, 1), []))
    module("tapes_by_more", "import tapes_by_number\ndef many(i):\n    return tapes_by_number.episodes((*i, 9))\n")
    with pytest.raises(SpirlError, match=r"many: gave more episodes for 2 indices"):
        list(reader("tapes_by_more:many", episodes=2).read((0, 1), []))


def test_the_identity_changes_with_the_module_and_the_options(module: Callable[[str, str], Path]) -> None:
    module("tapes_changed", ALL)
    call = "tapes_changed:episodes"
    before = reader(call).identity()
    assert reader(call).identity() == before
    assert reader(call, options={"count": 2}).identity() != before
    assert reader(call, episodes=4).identity() != before
    module("tapes_changed", ALL + "\n")
    assert reader(call).identity() != before
    with pytest.raises(ValidationError, match="options must be plain data"):
        reader(call, options={"folder": Path("x")})
    with pytest.raises(SpirlError, match="columns: action"):
        reader(call, columns={"action": "a"})
