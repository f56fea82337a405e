"""Block stacking: each term of the reward on hand-built moments, heights that have stood, observations, pictures."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import spirl_ray.envs as envs
from spirl_ray.envs.blocks import env as blocks
from spirl_ray.envs.blocks.env import (
    GRASP_STEPS,
    STANDING_STEPS,
    VIEW_SIZE,
    BlockStackingEnv,
    Building,
    Progress,
)
from spirl_ray.envs.blocks.world import BLOCK_HALF, BLOCK_SIDE, BlockWorld, Touches
from spirl_ray.episodes.features import stack_observations
from spirl_ray.errors import SpirlError

ID = "spirl/BlockStacking-v0"
STILL = np.array([0.0, 0.0, -1.0], np.float32)


def made(**kwargs: object) -> BlockStackingEnv:
    env = envs.make(ID, **kwargs).unwrapped
    assert isinstance(env, BlockStackingEnv)
    return env


@pytest.fixture
def seeing() -> BlockStackingEnv:
    """A small environment with its camera; skips where OpenGL does not work."""
    env = made(n_blocks=3, render_mode="rgb_array")
    try:
        env.reset(seed=0)
    except SpirlError as error:
        pytest.skip(str(error))
    return env


def test_it_passes_gymnasiums_checker(seeing: BlockStackingEnv) -> None:
    check_env(seeing, skip_render_check=False)
    seeing.close()


def test_it_passes_the_checker_without_a_camera() -> None:
    check_env(made(n_blocks=2, camera=False), skip_render_check=True)


@pytest.mark.parametrize("n_blocks", [1, 5, 11])
def test_only_the_number_of_blocks_differs_from_the_data(n_blocks: int) -> None:
    found = envs.observed_features(envs.make(ID, n_blocks=n_blocks), blocks.SPEC)
    declared = envs.environment(ID).features
    assert found["blocks"].shape == (n_blocks, 3)
    assert declared["blocks"].shape == (5, 3)
    assert {**found, "blocks": declared["blocks"]} == declared
    observation, _ = made(n_blocks=n_blocks, camera=False).reset(seed=0)
    assert {name: value.shape for name, value in observation.items()} == {
        "hand": (3,),
        "gripper": (6,),
        "blocks": (n_blocks, 3),
    }


def test_the_default_is_the_papers_target() -> None:
    env = made(camera=False)
    observation, info = env.reset(seed=0)
    sides = observation["blocks"][:, 1]
    assert np.abs(sides - np.arange(-1.0, 1.1, 0.2)).max() <= blocks.PLACE_SPREAD + 1e-6
    assert envs.make(ID).spec.max_episode_steps == 1000
    assert info == {"completed": (), "tower_height": 1}
    assert env.step(STILL)[1] == 0.0


def test_images_that_are_needed_and_missing_are_said_clearly() -> None:
    with pytest.raises(SpirlError, match=f"{ID}.*'camera'.*blocks, gripper, hand"):
        envs.observed_features(envs.make(ID, camera=False), blocks.SPEC)


def test_an_episode_follows_from_its_seed() -> None:
    def episode(seed: int) -> np.ndarray:
        env, rng = made(n_blocks=3, camera=False), np.random.default_rng(0)
        seen = [env.reset(seed=seed)[0], *(env.step(rng.uniform(-1, 1, 3))[0] for _ in range(20))]
        return np.stack([np.concatenate([value.ravel() for value in each.values()]) for each in seen])

    np.testing.assert_array_equal(episode(3), episode(3))
    assert (episode(3)[0] != episode(4)[0]).any()


def test_a_second_episode_knows_nothing_of_the_first() -> None:
    env = made(n_blocks=2, camera=False)
    env.reset(seed=0)
    env.world.arrange([(0.0, BLOCK_HALF), (0.0, BLOCK_HALF + BLOCK_SIDE)], (0.5, 0.6))
    for _ in range(STANDING_STEPS):
        info = env.step(STILL)[4]
    assert info == {"completed": ("height 2",), "tower_height": 2}
    assert env.reset(seed=0)[1] == {"completed": (), "tower_height": 1}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_blocks": 0}, "n_blocks must be at least 1"),
        ({"reward": "shaped"}, "reward must be .dense. or .sparse."),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_impossible_tasks_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(SpirlError, match=message):
        BlockStackingEnv(**kwargs)  # type: ignore[arg-type]


# --- reward ---


def moment(
    levels: tuple[int, ...], grasped: tuple[int, ...] = (), free: tuple[int, ...] = ()
) -> tuple[Touches, np.ndarray]:
    """Levels of the blocks, which of them are grasped and free, and heights that go with it (0.3 m for level 0)."""
    heights = np.array([0.3 if level == 0 else BLOCK_HALF + BLOCK_SIDE * (level - 1) for level in levels])
    numbers = range(len(levels))
    return Touches(tuple(i in grasped for i in numbers), levels, tuple(i in free for i in numbers)), heights


TABLE = moment((1, 1, 1))
HELD = moment((0, 1, 1), grasped=(0,), free=(0,))
STACKED = moment((2, 1, 1))


def followed(*moments: tuple[Touches, np.ndarray]) -> list[Progress]:
    building = Building(3)
    return [building.follow(*each) for each in moments]


def test_reward_is_fifty_for_each_metre_that_the_towers_top_has_been_lifted() -> None:
    for levels, blocks_up in (((1, 1, 1), 0), ((2, 1, 1), 1), ((3, 2, 1), 2)):
        (progress,) = followed(moment(levels))
        assert progress == Progress(tower=1 + blocks_up, lifted=0, delivered=0)
        assert progress.reward("dense") == pytest.approx(50.0 * BLOCK_SIDE * blocks_up)
        assert progress.reward("sparse") == pytest.approx(BLOCK_SIDE * blocks_up)


def test_a_lifted_block_counts_after_five_grasped_steps_on_end() -> None:
    found = followed(*[HELD] * GRASP_STEPS)
    assert [progress.lifted for progress in found] == [0, 0, 0, 0, 1]
    assert found[-1].reward("dense") == 1.0
    assert found[-1].reward("sparse") == 0.0
    interrupted = followed(*[HELD] * 4, TABLE, *[HELD] * 4)
    assert not any(progress.lifted for progress in interrupted)


def test_a_grasped_block_that_touches_or_is_hardly_up_is_not_lifted() -> None:
    touching = moment((0, 1, 1), grasped=(0,))
    low = (HELD[0], np.array([BLOCK_HALF + 0.01, BLOCK_HALF, BLOCK_HALF]))
    for each in (touching, low):
        assert not any(progress.lifted for progress in followed(*[each] * 8))


def test_a_delivered_block_counts_two_if_it_has_been_carried() -> None:
    (*_, delivered) = followed(*[HELD] * GRASP_STEPS, STACKED)
    assert delivered == Progress(tower=2, lifted=0, delivered=1)
    assert delivered.reward("dense") == pytest.approx(50.0 * BLOCK_SIDE + 2.0)
    assert delivered.reward("sparse") == pytest.approx(BLOCK_SIDE)
    (*_, pushed) = followed(*[HELD] * (GRASP_STEPS - 1), STACKED)
    assert pushed.delivered == 0


def test_a_block_that_has_been_put_down_must_be_carried_again() -> None:
    (*_, progress) = followed(*[HELD] * GRASP_STEPS, TABLE, STACKED)
    assert progress.delivered == 0


def test_a_held_tower_does_not_count() -> None:
    (progress,) = followed(moment((0, 1, 1), grasped=(0,)))
    assert progress.tower == 1


def test_a_height_is_complete_once_it_has_stood_for_five_steps() -> None:
    building = Building(3)
    heights = []
    for _ in range(STANDING_STEPS):
        building.follow(*STACKED)
        heights.append(building.highest)
    assert heights == [1, 1, 1, 1, 2]
    for _ in range(3):
        building.follow(*TABLE)
    assert building.highest == 2, "what falls afterwards has been complete"
    bouncing = Building(3)
    for _ in range(10):
        bouncing.follow(*STACKED)
        bouncing.follow(*TABLE)
    assert bouncing.highest == 1


def test_a_higher_tower_completes_the_lower_heights_too() -> None:
    assert blocks.subtasks(4) == ("height 2", "height 3", "height 4")
    assert blocks.subtasks(1) == ()


# --- what is seen ---


def test_observations_hold_the_frames_of_the_step_before_and_of_now(seeing: BlockStackingEnv) -> None:
    first = now = seeing.reset(seed=1)[0]["camera"]
    assert (now.dtype, now.shape) == (np.uint8, (2, VIEW_SIZE, VIEW_SIZE, 1))
    np.testing.assert_array_equal(now[0], now[1])
    for _ in range(3):
        before, now = now, seeing.step(np.array([1.0, -0.5, -1.0], np.float32))[0]["camera"]
        np.testing.assert_array_equal(now[0], before[1])
    assert (now[1] != first[1]).mean() > 0.02
    seeing.close()


def test_the_camera_moves_with_the_hand(seeing: BlockStackingEnv) -> None:
    """A block below the hand is in the middle of the view wherever that is, and white before what is dark."""
    views = []
    for side in (-0.4, 0.3):
        seeing.world.arrange([(side, BLOCK_HALF), (0.9, BLOCK_HALF), (-0.9, BLOCK_HALF)], (side, 0.3))
        views.append(seeing._agent_image())
    np.testing.assert_array_equal(views[0], views[1])
    bright = np.argwhere(views[0][..., 0] > 180)
    assert len(bright) > 15
    assert abs(bright[:, 1].mean() - 15.5) < 1.0
    seeing.close()


def test_proprioception_tells_where_along_the_table_the_hand_is_and_nothing_of_blocks() -> None:
    env, declared = made(n_blocks=3, camera=False), envs.environment(ID).features
    own = [name for name, feature in declared.items() if feature.role == "proprioception"]
    assert own == ["gripper"]
    env.reset(seed=0)
    env.world.arrange([(-0.9, BLOCK_HALF), (0.0, BLOCK_HALF), (0.9, BLOCK_HALF)], (0.3, 0.5))
    here = env.world.observe()["gripper"]
    assert np.count_nonzero(np.isclose(here, 0.3)) == 1
    env.world.arrange([(-0.7, BLOCK_HALF), (0.1, BLOCK_HALF), (0.6, BLOCK_HALF)], (0.3, 0.5))
    np.testing.assert_allclose(env.world.observe()["gripper"], here, atol=1e-9)


def test_blocks_are_a_set_of_objects_around_the_hand() -> None:
    declared = envs.environment(ID).features
    objects = declared["blocks"].objects
    assert objects is not None
    assert (objects.agent, objects.up, objects.size) == ("hand", 2, BLOCK_SIDE)


def test_a_picture_shows_the_whole_scene_and_leaves_the_agents_view_alone(seeing: BlockStackingEnv) -> None:
    seen = seeing._agent_image()
    picture = seeing.render()
    assert picture is not None
    assert (picture.dtype, picture.shape) == (np.uint8, (384, 640, 3))
    assert picture.std() > 20
    np.testing.assert_array_equal(seeing._agent_image(), seen)
    seeing.world.arrange([(y, BLOCK_HALF) for y in (-1.0, 0.0, 1.0)], (0.9, 0.9))
    moved = seeing.render()
    assert moved is not None
    assert (moved != picture).any(axis=-1).mean() > 0.005
    seeing.close()


def test_pictures_show_how_a_tower_grows() -> None:
    world = BlockWorld(2)
    seen = []
    for places in ([(-0.3, BLOCK_HALF), (0.3, BLOCK_HALF)], [(-0.3, BLOCK_HALF), (-0.3, BLOCK_HALF + BLOCK_SIDE)]):
        world.arrange(places, (0.0, 0.8))
        seen.append(world.observe())
    apart, built = blocks.render_recorded({}, stack_observations(seen), [0, 1])
    assert apart.shape == (240, 400, 3)
    changed = np.abs(apart.astype(int) - built).max(-1) > 30
    assert changed[:, 200:].any(), "the right block is gone"
    assert changed[:, :200].any(), "and is on the left one"
