"""The grammar, the palette and the renderer."""

import dataclasses
import itertools

import numpy as np
import pytest

from wan_tpu.demo import data

WORLDS = (data.SIDES_WORLD, data.MIDDLE_WORLD)


def test_grammar_has_216_scenes_and_every_prompt_parses_back():
    scenes = data.all_scenes()
    assert len(scenes) == len(set(scenes)) == 216
    assert [data.parse_prompt(scene.prompt) for scene in scenes] == scenes


def test_parse_prompt_ignores_case_and_a_full_stop():
    scene = data.parse_prompt("A Red circle moving LEFT on a black background.")
    assert scene == data.Scene(color="red", shape="circle", direction="left", background="black")


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle", "a pink circle moving left on a black background", "a cat on a mat"],
)
def test_parse_prompt_refuses_what_is_outside_the_grammar(prompt):
    with pytest.raises(ValueError, match="COLOR SHAPE moving"):
        data.parse_prompt(prompt)


def test_scene_refuses_an_unknown_word():
    with pytest.raises(ValueError, match="'pink' is not one of red"):
        data.Scene(color="pink", shape="circle", direction="left", background="black")


def test_colors_are_far_apart_on_every_background():
    everything = data.COLORS | data.BACKGROUNDS
    for (first, a), (second, b) in itertools.combinations(everything.items(), 2):
        if {first, second} <= set(data.BACKGROUNDS):
            continue  # a background is never beside another
        assert np.linalg.norm(np.subtract(a, b)) >= 140, (first, second)


@pytest.mark.parametrize("world", WORLDS)
def test_clip_has_the_documented_form_and_varies_with_the_seed(world):
    scene = data.all_scenes()[0]
    clip = data.make_clip(scene, np.random.default_rng(0), world)
    assert clip.shape == (world.num_frames, world.side, world.side, 3)
    assert clip.dtype == np.float32
    assert 0 <= clip.min() <= clip.max() <= 1
    assert np.array_equal(clip, data.make_clip(scene, np.random.default_rng(0), world))
    assert not np.array_equal(clip, data.make_clip(scene, np.random.default_rng(1), world))


@pytest.mark.parametrize("shape", data.SHAPES)
def test_coverage_has_the_area_of_the_shape(shape):
    size = 12.0
    area = {"circle": np.pi * size**2, "square": (2 * 0.92 * size) ** 2, "triangle": 2 * size**2}
    coverage = data.shape_coverage(shape, np.array([[31.3, 32.8]], np.float32), size, side=64)
    assert coverage.sum() == pytest.approx(area[shape], rel=0.02)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("direction", "step"), list(data.DIRECTIONS.items()))
def test_centers_go_where_the_direction_says(world, direction, step):
    scene = data.Scene(color="white", shape="circle", direction=direction, background="black")
    pose = data.random_pose(np.random.default_rng(0), world)
    centers = data.make_centers(scene, pose, world, data.clip_times(world))
    way = centers[-1] - centers[0]
    assert world.travel[0] - 1 <= way @ step <= world.travel[1] + 1
    assert way @ np.array(step)[::-1] == 0


def test_the_shape_is_drawn_at_its_centre():
    scene = data.Scene(color="white", shape="circle", direction="up", background="black")
    world, pose = data.SIDES_WORLD, data.random_pose(np.random.default_rng(0), data.SIDES_WORLD)
    center = data.make_centers(scene, pose, world, np.array([0.2]))[0]
    picture = data.make_frames(scene, pose, world, np.array([0.2]))[0, ..., 0]
    grid = np.arange(world.side) + 0.5
    found = picture.sum(axis=0) @ grid / picture.sum(), picture.sum(axis=1) @ grid / picture.sum()
    np.testing.assert_allclose(found, center, atol=0.05)


def test_a_start_near_the_middle_says_nothing_of_the_direction():
    # The same draws give the same first picture, whatever the direction.
    for shape in data.SHAPES:
        pictures = [
            data.make_picture(
                data.Scene(color="red", shape=shape, direction=direction, background="black"),
                np.random.default_rng(3),
                world=dataclasses.replace(data.MIDDLE_WORLD, along=0.0, across=0.0),
            )
            for direction in data.DIRECTIONS
        ]
        assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])
    rng = np.random.default_rng(0)
    starts = {
        direction: np.array(
            [
                data.make_centers(
                    data.Scene(
                        color="red", shape="circle", direction=direction, background="black"
                    ),
                    data.random_pose(rng, data.MIDDLE_WORLD),
                    data.MIDDLE_WORLD,
                    np.zeros(1),
                )[0]
                for _ in range(400)
            ]
        )
        for direction in data.DIRECTIONS
    }
    for places in starts.values():
        # Uniform in 28 x 28 pixels around the middle: the mean of 400 is within 1.6 of it.
        assert np.abs(places - data.MIDDLE_WORLD.side / 2).max() <= 14
        assert np.abs(places.mean(axis=0) - data.MIDDLE_WORLD.side / 2).max() < 1.6
